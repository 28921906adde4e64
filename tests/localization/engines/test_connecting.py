from pathlib import Path

import pytest

from progeo.localization.engines.connecting import EngineMetadata, check_free, connect, engine_metadata
from progeo.localization.engines.options import EngineOptions
from progeo.localization.engines.server import ServerCollection


def test_a_collection_has_the_name_of_the_folder_in_letters_that_a_server_takes():
    options = EngineOptions(engine="qdrant", engine_url="http://host:6333")
    found = engine_metadata(options, Path("/data/Zürich 2024/city.index"), "me")
    assert found == EngineMetadata("qdrant", "http://host:6333", "city.index", found.owner, "none")
    assert engine_metadata(options, Path("/data/Zürich 2024"), "me").collection == "Z_rich_2024"


def test_an_index_owns_its_collection_by_folder_and_encoder():
    def owner(out, encoder):
        return engine_metadata(EngineOptions(engine="qdrant"), Path(out), encoder).owner

    assert owner("index", "one") == owner("./index", "one")
    assert len({owner("index", "one"), owner("index", "two"), owner("other", "one")}) == 3


def test_a_folder_is_stored_as_an_absolute_path_and_that_of_the_index_as_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = engine_metadata(EngineOptions(engine="qdrant", engine_url="edge"), tmp_path / "index", "me")
    own = engine_metadata(EngineOptions(engine="qdrant"), tmp_path / "index", "me")
    assert (given.url, given.collection) == (str(tmp_path / "edge"), "")
    assert (own.url, own.collection) == ("", "")
    assert connect(given, tmp_path / "index").folder == tmp_path / "edge"
    assert connect(own, tmp_path / "moved").folder == tmp_path / "moved/qdrant"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine_url": "http://host"}, "`engine_url` is for an `engine`"),
        ({"engine_quantization": "int8"}, "`engine_quantization` is for an `engine`"),
        *(
            ({"engine": "qdrant", "engine_url": url}, "`engine_url` must begin with http:// or https://, then a host")
            for url in ("ftp://host", "http://", "http://host:port", "http://host:99999", "http://[::1", "host:6333")
        ),
        ({"engine": "qdrant", "engine_collection": "x"}, "`engine_collection` is for a server, and a folder holds one"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        engine_metadata(EngineOptions(**options), Path("index"), "me")


def test_qdrant_edge_is_refused_to_several_processes(tmp_path):
    engine = engine_metadata(EngineOptions(engine="qdrant"), tmp_path, "me")
    check_free(engine, tmp_path, width=4, num_processes=1)
    with pytest.raises(ValueError, match="Qdrant Edge is for one process, not 2: name a server with `engine_url`"):
        check_free(engine, tmp_path, width=4, num_processes=2)


def test_without_options_there_is_no_engine():
    assert engine_metadata(EngineOptions(), Path("index"), "me") is None


def test_the_engine_of_metadata_is_connected_to(tmp_path):
    found = connect(EngineMetadata("qdrant", "http://host:1", "city", "me"), tmp_path)
    assert isinstance(found, ServerCollection)
    assert found.place == "the collection city of the Qdrant server at http://host:1"
