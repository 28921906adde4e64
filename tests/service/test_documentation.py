"""The client of the documentation works."""

import re
import shutil

from running import ROOT
from serving import serving


def test_the_client_of_the_documentation_prints_a_position(served_index, photos, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/service.md").read_text(), re.DOTALL)
    shutil.copy(photos[0], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(served_index, decoders=1) as client:
        address = str(client.base_url).rstrip("/")
        assert "http://127.0.0.1:8000/" in code
        exec(code.replace("http://127.0.0.1:8000", address), {})
        result = client.post("/localize", files={"photos": photos[0].read_bytes()}).json()["results"][0]
    assert capsys.readouterr().out == f"photo.jpg {result['position']} {result['words']}\n"
