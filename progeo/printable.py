"""Show text of untrusted files, and errors about them, safely and on one line."""


def printable(text: str) -> str:
    """Replace non-printable characters by `?` in text of an untrusted file, so that it is safe to display."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def first_line(error: BaseException, otherwise: str = "it is truncated") -> str:
    """Return the first line of an error as printable text without a period at its end; `otherwise` if it is empty."""
    return printable((str(error).strip() or otherwise).splitlines()[0].rstrip("."))
