"""Whether the servers of pretrained weights can be reached, without waiting long for those that cannot."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

HUBS = {
    "https://huggingface.co": "CLIPs, networks of timm, and encoders of hf-hub:",
    "https://download.pytorch.org": "networks of torchvision",
    "https://github.com": "encoders of hub:OWNER/REPO",
    "https://openaipublic.azureedge.net": "OpenAI's CLIPs, where Hugging Face cannot be reached",
}
"""Servers of pretrained weights, and whose they have."""
TIMEOUT_S = 2.5
_ENDPOINT, _OFFLINE = "HF_ENDPOINT", "HF_HUB_OFFLINE"
"""Variables of Hugging Face's library: another server, and not to ask any."""


@dataclass(frozen=True)
class Hub:
    """A server of pretrained weights."""

    address: str
    weights: str
    """Whose weights it has."""
    answer: str
    """`reached`, or why not."""


class HubCheck:
    """Requests to all servers at the same time, each in a thread that nobody needs to wait for.

    Args:
        hubs: addresses of servers, and whose weights they have.
        timeout_s: time that all of them together may take.
    """

    def __init__(self, hubs: Mapping[str, str], *, timeout_s: float = TIMEOUT_S) -> None:
        self.hubs, self.timeout_s = hubs, timeout_s
        self.deadline = time.monotonic() + timeout_s
        self.answers: dict[str, str] = {}
        # Daemons, as looking up a name has no timeout: the command ends without them.
        self.threads = [Thread(target=self._ask, args=(address,), daemon=True) for address in hubs]
        for thread in self.threads:
            thread.start()

    def results(self) -> list[Hub]:
        """Wait for the answers until the time is over."""
        for thread in self.threads:
            thread.join(max(0, self.deadline - time.monotonic()))
        late = f"no answer within {self.timeout_s:g} s"
        answers = dict(self.answers)
        return [Hub(address, weights, answers.get(address, late)) for address, weights in self.hubs.items()]

    def _ask(self, address: str) -> None:
        try:
            with urlopen(Request(address, method="HEAD"), timeout=self.timeout_s):
                self.answers[address] = "reached"
        except HTTPError:  # it has answered
            self.answers[address] = "reached"
        except (OSError, HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)  # urllib wraps the error of the system
            reason = str(getattr(cause, "strerror", "") or cause or type(error).__name__)
            self.answers[address] = "no answer in time" if "timed out" in reason else f"not reached: {reason}"


def known_hubs() -> dict[str, str]:
    """Return the servers that the libraries ask; without that of Hugging Face if the environment keeps it offline."""
    hubs = dict(HUBS)
    first, weights = next(iter(hubs.items()))
    endpoint = os.environ.get(_ENDPOINT, "").rstrip("/") or first
    del hubs[first]
    if os.environ.get(_OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE"):
        return hubs
    return {endpoint: weights, **hubs}
