"use strict";
// What strangers have written comes through textContent alone; the server's own parts are escaped there.
(function () {
  const find = (selector, from) => (from || document).querySelector(selector);

  // A run as it happens: the middle of the page is asked for again while a process works.
  const watched = find("[data-refresh]");
  if (watched) {
    const announce = find("[data-announce]");
    let last = "", misses = 0;
    const working = () => find("[data-working]", watched)?.dataset.working === "yes";
    const say = () => {
      const said = find("[data-working]", watched)?.dataset.say || "";
      // The budget counts down each second: only what has happened is read out.
      const heard = said.replace(/ At most .*/, "");
      if (announce && announce.textContent !== heard) announce.textContent = heard;
    };
    const again = async () => {
      try {
        const answer = await fetch(watched.dataset.refresh, { headers: { "x-part": "yes" } });
        const text = await answer.text();
        if (answer.status === 401) { location.reload(); return; }
        if (answer.ok && text !== last) {
          const held = document.activeElement && watched.contains(document.activeElement);
          const open = find("details", watched)?.open;
          const left = find(".scroll", watched)?.scrollLeft;
          const focused = held ? document.activeElement.tagName : "";
          watched.innerHTML = text;
          last = text;
          if (open !== undefined && find("details", watched)) find("details", watched).open = open;
          if (left && find(".scroll", watched)) find(".scroll", watched).scrollLeft = left;
          if (focused) (find(focused.toLowerCase(), watched) || find("#main")).focus();
          say();
        }
        misses = 0;
      } catch { misses += 1; }
      if (misses === 3) {
        announce.textContent = "The server does not answer.";
        announce.className = "warning";
      }
      if (misses === 0 && announce.className === "warning") announce.className = "unseen";
      if (working() || misses) setTimeout(again, misses ? 4000 : 1000);
    };
    if (working()) setTimeout(again, 400);
  }

  // Arms are chosen one by one as soon as one of them is.
  const ticks = find("[data-chooses]");
  if (ticks) ticks.addEventListener("change", () => {
    find(`input[name=which][value=${ticks.dataset.chooses}]`).checked = true;
  });

  // Rows: keys, and all of them at once.
  const list = find("#row-list"), search = find("[data-search]");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "/" && search) { search.focus(); event.preventDefault(); return; }
    if (!list || (event.key !== "j" && event.key !== "k")) return;
    const summaries = [...list.querySelectorAll("summary")];
    const at = summaries.indexOf(document.activeElement);
    const next = summaries[event.key === "j" ? at + 1 : Math.max(0, at - 1)];
    if (next) next.focus();
  });
  const toggle = find("[data-toggle-rows]");
  if (toggle) toggle.addEventListener("click", () => {
    const rows = [...list.querySelectorAll("details.row")];
    const open = rows.some((row) => !row.open);
    for (const row of rows) row.open = open;
  });

  // The playground: two questions at once, both answers as they come.
  const form = find("#ask");
  if (!form) return;
  const halt = find("[data-halt]"), main = find("button.main", form);
  let stopped = null;

  async function ask(letter, signal) {
    const state = find(`[data-state=${letter}]`), said = find(`[data-answer=${letter}]`);
    const model = form.elements[letter].value;
    find(`#name-${letter.toUpperCase()}`).textContent = `${letter.toUpperCase()}: ${model}`;
    said.textContent = "";
    state.textContent = "waiting";
    try {
      const answer = await fetch(form.getAttribute("action"), {
        method: "POST", signal, headers: { "x-token": form.dataset.token, "x-part": "yes" },
        body: new URLSearchParams({ model, prompt: form.elements.prompt.value }),
      });
      if (!answer.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        throw new Error(find(".warning", page)?.textContent || `status ${answer.status}`);
      }
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) take(JSON.parse(line), state, said);
      }
    } catch (error) {
      state.textContent = error.name === "AbortError" ? "stopped" : error.message;
    }
  }

  function take(told, state, said) {
    if (told.text !== undefined) {
      if (state.textContent === "waiting") state.textContent = "answering";
      said.append(told.text);
    } else if (told.error !== undefined) {
      state.textContent = told.hint ? `${told.error} Hint: ${told.hint}` : told.error;
    } else {
      const { arm, prompt_tokens, output_tokens, seconds, finish_reason } = told.done;
      state.textContent = `${arm} · ${prompt_tokens} + ${output_tokens} tokens · ${seconds.toFixed(2)} s` +
        (finish_reason === "length" ? " · cut off" : "");
      if (!said.textContent) { said.textContent = "(empty)"; said.classList.add("empty"); }
    }
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (stopped) return;
    stopped = new AbortController();
    main.disabled = true; halt.disabled = false;
    for (const said of document.querySelectorAll("[data-answer]")) said.classList.remove("empty");
    await Promise.all(["a", "b"].map((letter) => ask(letter, stopped.signal)));
    stopped = null; main.disabled = false; halt.disabled = true;
  });
  halt.addEventListener("click", () => stopped && stopped.abort());
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
})();
