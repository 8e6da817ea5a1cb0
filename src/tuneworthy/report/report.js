"use strict";
// Rows come from strangers: everything is set through textContent, nothing through markup.
(function () {
  const PAGE = 20;
  const data = JSON.parse(document.getElementById("rows-data").textContent);
  const find = (id) => document.getElementById(id);
  const list = find("row-list");
  if (!list || !data.arms.length) return;
  const first = find("arm-a"), second = find("arm-b"), filter = find("row-filter"), search = find("row-search");
  let matches = [], page = 0, timer = 0;

  const TEXT = 0, SCORE = 1, PARSED = 2, FAILURE = 3, TOKENS = 4, FINISH = 5;
  const score = (answer) => (answer && answer[SCORE] !== null ? answer[SCORE] : null);
  const failed = (answer) => Boolean(answer && answer[FAILURE] !== null);
  const unparsed = (answer) => Boolean(answer && answer[FAILURE] === null && !answer[PARSED]);
  const both = (a, b) => score(a) !== null && score(b) !== null;
  const FILTERS = {
    all: () => true,
    won: (a, b) => both(a, b) && score(a) - score(b) > 1e-9,
    lost: (a, b) => both(a, b) && score(b) - score(a) > 1e-9,
    differ: (a, b) => Boolean(a && b && a[TEXT] !== b[TEXT]),
    unparsed: (a, b) => unparsed(a) || unparsed(b),
    failed: (a, b) => failed(a) || failed(b),
  };
  const LABELS = {
    all: () => "All rows",
    won: (a, b) => a + " better",
    lost: (a, b) => b + " better",
    differ: () => "Answers differ",
    unparsed: () => "Not parsed",
    failed: () => "Machine failed",
  };

  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function block(text, label) {
    const made = element("pre", text === "" ? "said empty" : "said", text === "" ? "(empty)" : text);
    made.dir = "auto";
    made.tabIndex = 0;
    made.setAttribute("role", "group");
    made.setAttribute("aria-label", label);
    return made;
  }

  function state(answer) {
    if (!answer) return "no answer yet";
    if (failed(answer)) return "machine failed";
    const shown = score(answer) === null ? "not measurable" : score(answer).toFixed(3);
    return unparsed(answer) ? shown + " · not parsed" : shown;
  }

  function card(name, answer, role) {
    const made = element("section", "card" + (role ? " chosen" : ""));
    const head = element("h4", "", name);
    if (role) head.append(element("span", "role", role));
    made.append(head, element("p", "state", state(answer)));
    if (!answer) return made;
    if (failed(answer)) made.append(block(answer[FAILURE], name + ", failure"));
    else {
      made.append(block(answer[TEXT], name + ", answer"));
      if (answer[FINISH] === "length")
        made.append(element("p", "note", "cut off at " + answer[TOKENS] + " tokens"));
    }
    return made;
  }

  function fill(body, row, a, b) {
    const asked = element("div", "asked");
    const prompt = element("section", "card");
    prompt.append(element("h4", "", "Prompt"));
    for (const [role, content] of row.prompt) {
      if (row.prompt.length > 1) prompt.append(element("p", "state", role));
      prompt.append(block(content, "prompt, " + role));
    }
    const wanted = element("section", "card wanted");
    wanted.append(element("h4", "", "Reference"), block(row.wanted, "reference"));
    asked.append(prompt, wanted);
    const answers = element("div", "answers");
    const order = a === b ? [a] : [a, b];
    data.arms.forEach((_, i) => { if (!order.includes(i)) order.push(i); });
    for (const i of order)
      answers.append(card(data.arms[i], row.answers[i], a !== b && i === a ? "A" : a !== b && i === b ? "B" : ""));
    body.append(asked, answers, element("p", "note", row.id + " · " + row.source));
  }

  function outcome(a, b) {
    if (FILTERS.won(a, b)) return "A better";
    if (FILTERS.lost(a, b)) return "B better";
    return both(a, b) ? "tie" : "no comparison";
  }

  function rowElement(index, a, b) {
    const row = data.rows[index];
    const made = element("details", "row");
    const summary = element("summary");
    summary.append(element("span", "number", String(index + 1)));
    const last = row.prompt[row.prompt.length - 1];
    const snippet = element("span", "snippet", last ? last[1].slice(0, 160).replace(/\s+/g, " ") : "");
    snippet.dir = "auto";
    summary.append(snippet);
    const scores = element("span", "scores");
    scores.append(element("span", "pairwise", a === b ? "" : outcome(row.answers[a], row.answers[b])));
    scores.append(element("span", "tag", (a === b ? "" : "A ") + state(row.answers[a])));
    if (a !== b) scores.append(element("span", "tag", "B " + state(row.answers[b])));
    summary.append(scores);
    const body = element("div", "body");
    made.append(summary, body);
    made.addEventListener("toggle", () => { if (made.open && !body.firstChild) fill(body, row, a, b); });
    return made;
  }

  function draw() {
    const a = Number(first.value), b = Number(second.value);
    const pages = Math.max(1, Math.ceil(matches.length / PAGE));
    page = Math.min(page, pages - 1);
    const from = page * PAGE, to = Math.min(matches.length, from + PAGE);
    list.replaceChildren(...matches.slice(from, to).map((index) => rowElement(index, a, b)));
    if (!matches.length) list.append(element("p", "note", "No row matches."));
    find("row-count").textContent = matches.length
      ? "Rows " + (from + 1) + " to " + to + " of " + matches.length + (matches.length < data.rows.length ? " (" + data.rows.length + " in all)" : "")
      : "0 of " + data.rows.length + " rows";
    find("page-back").disabled = page === 0;
    find("page-on").disabled = page >= pages - 1;
  }

  function update() {
    const a = Number(first.value), b = Number(second.value);
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    data.rows.forEach((row, index) => {
      if (words.length) {
        row.haystack = row.haystack || [row.id, row.source, row.wanted, ...row.prompt.map((turn) => turn[1]),
          ...row.answers.map((answer) => (answer ? answer[TEXT] : ""))].join("\n").toLowerCase();
        if (!words.every((word) => row.haystack.includes(word))) return;
      }
      found.push(index);
    });
    for (const option of filter.options) {
      const number = found.filter((i) => FILTERS[option.value](data.rows[i].answers[a], data.rows[i].answers[b])).length;
      option.textContent = LABELS[option.value](data.arms[a], data.arms[b]) + " (" + number + ")";
    }
    matches = found.filter((i) => FILTERS[filter.value](data.rows[i].answers[a], data.rows[i].answers[b]));
    page = 0;
    draw();
  }

  function turn(by) { page += by; draw(); find("rows").scrollIntoView(); }

  for (const control of [first, second, filter]) control.addEventListener("change", update);
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(update, 120); });
  find("page-back").addEventListener("click", () => turn(-1));
  find("page-on").addEventListener("click", () => turn(1));
  find("row-open").addEventListener("click", () => {
    const rows = [...list.querySelectorAll("details")];
    const open = rows.some((row) => !row.open);
    for (const row of rows) row.open = open;
  });
  for (const link of document.querySelectorAll("a[data-a]"))
    link.addEventListener("click", () => {
      first.value = link.dataset.a; second.value = link.dataset.b; filter.value = "won"; search.value = "";
      update();
    });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "/") { search.focus(); event.preventDefault(); return; }
    if (event.key !== "j" && event.key !== "k") return;
    const summaries = [...list.querySelectorAll("summary")];
    const at = summaries.indexOf(document.activeElement);
    const next = summaries[event.key === "j" ? at + 1 : Math.max(0, at - 1)];
    if (next) next.focus();
  });
  find("row-tools").hidden = false;
  update();
  const opened = list.querySelector("details");
  if (opened) opened.open = true;
})();
