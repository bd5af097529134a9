"""Properties of the folder that keeps compiled programs."""

import jax
import pytest

from training import compilation


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
