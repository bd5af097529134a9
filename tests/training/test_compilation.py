"""What a process sets up for its programs: the folder that keeps them, the dtype of 'auto'."""

import json

import jax
import pytest

from configs import common
from training import compilation
from training.workdir import check_workdir


@pytest.fixture
def no_folder():
    """Has JAX keep no compiled programs; restores its setting."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_it_is_in_the_home(no_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    compilation.use_cache()
    assert jax.config.jax_compilation_cache_dir.startswith(str(tmp_path / ".cache/weitiao"))


def test_without_a_home_to_write_to_it_is_left_out(no_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    compilation.use_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert "Set $JAX_COMPILATION_CACHE_DIR to a folder" in capsys.readouterr().out

    def expanduser(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", expanduser)  # as for a user without an entry
    compilation.use_cache()
    assert "Could not determine home directory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("backend", "features", "dtype", "why"),
    [
        ("cpu", "flags : avx2 avx512_bf16 fma", "bfloat16", "has avx512_bf16"),
        ("cpu", "flags : amx_bf16 avx512_bf16", "bfloat16", "has amx_bf16 and avx512_bf16"),
        ("cpu", "flags : avx2 avx512f", "float32", "has no bfloat16 instructions"),
        ("cpu", "", "float32", "has no bfloat16 instructions"),
        ("gpu", "flags : avx2", "bfloat16", "runs on gpu"),
    ],
)
def test_auto_is_resolved_by_what_the_machine_gains(
    backend, features, dtype, why, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(compilation, "cpu_features", lambda: features)
    config = common.get_config()
    config.model.dtype = "auto"
    compilation.resolve_dtype(config, tmp_path, print)
    assert config.model.dtype == dtype
    assert f"computes in {dtype}" in (said := capsys.readouterr().out) and why in said


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("features", ["flags : avx512_bf16", "flags : avx2"])
def test_a_run_keeps_its_dtype_on_another_machine(stored, features, monkeypatch, tmp_path):
    monkeypatch.setattr(compilation, "cpu_features", lambda: features)
    config = common.get_config()
    config.model.dtype = stored
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "checkpoints/3").mkdir(parents=True)
    again = common.get_config()
    again.model.dtype = "auto"
    compilation.resolve_dtype(again, tmp_path, print)
    assert again.model.dtype == stored
    check_workdir(tmp_path, again)  # the same config
    assert json.loads(again.to_json())["model"]["dtype"] == stored


def test_a_given_dtype_stays(tmp_path):
    config = common.get_config()
    config.model.dtype = "bfloat16"
    compilation.resolve_dtype(config, tmp_path, pytest.fail)
    assert config.model.dtype == "bfloat16"
