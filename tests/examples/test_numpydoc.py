from __future__ import annotations

from tuneworthy.examples.numpydoc import MAX_CHARACTERS, functions, pairs

SOURCE = '''\
class Toy:
    @property
    def name(self) -> str:
        """
        Name of the toy.

        Returns
        -------
        str

        See Also
        --------
        Toy : The toy.
        """

        # As it is.
        return self._name

    async def play(
        self, seconds: float = 1.0
    ) -> None:
        """Play with it.

        Parameters
        ----------
        seconds : float, default 1.0
            How long.

        Examples
        --------
        >>> await toy.play()
        """
        await sleep(seconds)

    def stop(self) -> None:
        """Stop, without sections."""
        self._on = False

    def bare(self) -> None:
        return None

    def only(self) -> None:
        """Only a docstring.

        Returns
        -------
        None
        """

    def headless(self) -> int:
        """
        Returns
        -------
        int
        """
        return 1
'''


def test_code_stands_at_the_margin_without_docstring_and_decorators() -> None:
    rows = {row["prompt"]: row["completion"] for row in pairs([("toy.py", SOURCE)])}
    assert rows == {
        "def name(self) -> str:\n    # As it is.\n    return self._name": (
            "Name of the toy.\n\nReturns\n-------\nstr"
        ),
        "async def play(\n    self, seconds: float = 1.0\n) -> None:\n    await sleep(seconds)": (
            "Play with it.\n\nParameters\n----------\nseconds : float, default 1.0\n    How long."
        ),
    }


def test_functions_without_docstring_or_body_are_no_functions_here() -> None:
    assert [code.split("(")[0].split()[-1] for code, _ in functions(SOURCE)] == [
        "name",
        "play",
        "stop",
        "headless",
    ]


def test_code_that_is_never_run_may_do_anything() -> None:
    assert pairs([("bad.py", "raise SystemExit('run')\n" + SOURCE)]) != []


def test_code_or_a_docstring_that_comes_again_is_left_out() -> None:
    other = SOURCE.replace("self._name", "self._title").replace("Play with it", "Play")
    rows = pairs([("toy.py", SOURCE), ("other.py", other)])
    assert len(rows) == 2 and {row["file"] for row in rows} == {"toy.py"}
    assert rows == pairs([("toy.py", SOURCE), ("other.py", other)])


def test_long_functions_are_left_out() -> None:
    long = SOURCE.replace("# As it is.", "#" * MAX_CHARACTERS)
    assert len(pairs([("toy.py", long)])) == 1
