"""Show text of untrusted files safely."""


def printable(text: str) -> str:
    """Replace non-printable characters by `?` in text of an untrusted file, so that it is safe to display."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
