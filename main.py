"""`python main.py --config=configs/x.py --workdir=DIR --mode=MODE`: from the data to the number.

Flags and process set-up only; each mode is a file or folder of workflows/.
"""

import contextlib
import errno
import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from configs.checks import check_values
from configs.overrides import check_overrides
from input_pipeline import hosts
from input_pipeline.locking import in_use
from reporting.console import restart_in_utf8, set_up_output
from tasks import KINDS

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/reviews.py:runlocal.")
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, results.")
flags.register_validator("workdir", lambda path: "://" not in (path or ""), "no folder of a disk")
flags.DEFINE_string("coordinator", "", "Of several processes: host:port of process 0.")
flags.DEFINE_integer("num_processes", 0, "How many processes there are (docs/scaling.md).")
flags.DEFINE_integer("process_id", -1, "Which of them this one is.")
flags.DEFINE_integer("heartbeat", 100, "Seconds of silence after which a process is dead.")
_MODES = ["train", "sweep", "evaluate", "test", "predict", "integrate", "report"]
_MODES += ["review", "inspect", "verify", "export", "mine", "retrieve"]
_MODULES = {"repeat": "sweep"}
_MODULES |= {mode: f"{mode}.{mode}" for mode in ("integrate", "inspect", "verify", "export")}
_WRITERS = ("train", "sweep", "test", "integrate", "review")  # one at a time in a workdir
flags.DEFINE_enum("mode", "train", _MODES, "What to do; see README.md.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Dispatches on --mode; a user's mistake ends as one message, without a stack trace."""
    if len(argv) > 1:
        sys.exit(f"Unexpected arguments {argv[1:]}: values are given as --config.key=value")
    set_up_output()
    with hosts.ending_together():
        run(FLAGS.config.lock(), Path(FLAGS.workdir))


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs one mode, or exits with a message."""
    from training import compilation, interruption, sharding

    compilation.use_cache()
    compilation.keep_memory()
    recipe = config_flags.get_config_filename(FLAGS["config"])
    alone = config.seeds == 1 and not config.search.print_commands
    name, arguments = FLAGS.mode, {}
    if name == "sweep" or (name == "train" and not alone):
        name, arguments = "sweep" if name == "sweep" else "repeat", {"recipe": recipe}
    module = importlib.import_module(f"workflows.{_MODULES.get(name, name)}")
    try:
        sharding.use_virtual_devices(config.sharding.devices, FLAGS.mode)
        hosts.check_start(FLAGS.mode, config.to_json(), workdir)
        with in_use(workdir) if FLAGS.mode in _WRITERS else contextlib.nullcontext():
            getattr(module, name)(config, workdir, **arguments)
    except interruption.Interrupted as interrupted:
        if hosts.writes():
            print(interrupted, file=sys.stderr)
        sys.exit(interruption.EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Start the same command again to go on from the last checkpoint.")
    except (ValueError, OSError) as error:
        if FLAGS.showtrace:
            raise
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        remedy = f" (in {workdir}?): free some space, then start the same command again"
        sys.exit(f"Error: {error}{remedy if full else ''}")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags, joins the other processes, and checks keys and values of the config."""
    try:
        sys.argv = check_overrides(argv)  # which absl reads the keys of the config from
        rest = FLAGS(sys.argv)
        started = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
        hosts.start(*started, heartbeat=FLAGS.heartbeat)
    except (flags.Error, ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
    with hosts.ending_together():  # an error of all, or of one that was started otherwise
        try:
            check_values(FLAGS.config, tasks=KINDS)
        except (ValueError, OSError) as error:
            sys.exit(f"Error: {error}")
    return rest


if __name__ == "__main__":
    restart_in_utf8()
    flags.DEFINE_bool("showtrace", False, "Show the stack trace of an error.")
    app.run(main, flags_parser=parse_flags)
