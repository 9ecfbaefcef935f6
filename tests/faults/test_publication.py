"""What is published is what was written, whoever interferes, and nobody else's work is lost."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest

import nola_edge as ne
from nola_edge.errors import OutputError
from tests.conftest import calls_to_try, load_all, snapshot, tiny_adapter, write_safetensors
from tests.faults import test_interrupted_merge as single
from tests.gguf.test_merge import adapter_of, arrays_of, write

pytestmark = single.pytestmark
library = single.library
commands = single.commands
Merge = single.Merge


class Command(Merge):
    """Any other command that writes an output."""

    def __init__(self, commands, tiny, tmp_path, *options, output=None):
        super().__init__(commands, tiny, tmp_path, *options)
        self.output = output or self.output

    @property
    def arguments(self):
        return [*self.options, "-o", self.output]


@pytest.fixture
def one_file(tiny, tmp_path):
    """A base that is one file."""
    path = tmp_path / "one.safetensors"
    write_safetensors(path, load_all(tiny[0]))
    return path, tiny[1]


@pytest.fixture(params=["folder", "file", "each", "gguf", "lora", "unpack", "pack"])
def command(request, commands, tiny, one_file, tmp_path):
    """Every kind of output, written by the command line."""
    base, adapter = tiny
    tiny_adapter().pack(tmp_path / "packed")
    adapter_of().save(tmp_path / "for-gguf")
    gguf = write(tmp_path / "base.gguf", arrays_of("F16")), tmp_path / "for-gguf"
    return {
        "gguf": lambda: Merge(commands, gguf, tmp_path),
        "folder": lambda: Merge(commands, tiny, tmp_path),
        "file": lambda: Merge(commands, one_file, tmp_path),
        "each": lambda: Merge(commands, tiny, tmp_path, tmp_path / "packed", "--each"),
        "lora": lambda: Command(
            commands, tiny, tmp_path, "export", "lora", adapter, "--base", base
        ),
        "unpack": lambda: Command(commands, tiny, tmp_path, "unpack", tmp_path / "packed"),
        "pack": lambda: Command(
            commands, tiny, tmp_path, "pack", adapter, output=tmp_path / "out.nola"
        ),
    }[request.param]()


def digest(path):
    return snapshot(path) if path.is_dir() else path.read_bytes()


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_part_of(found, complete):
    """Whether each of the outputs of --each is complete or absent."""
    names = {name for name in found if "/" not in name}
    wanted = {name: value for name, value in complete.items() if name.split("/")[0] in names}
    return found == wanted


@pytest.mark.parametrize("what", ["-name '.nola-edge-*' -prune", "-path '*/.nola-edge-*' -type f"])
def test_a_temporary_is_removed_at_every_call(command, tmp_path, what):
    """By a job that tidies up: the folder at once, or only the files in it."""
    names = command.calls()
    complete = digest(command.output)
    remove(command.output)
    before = snapshot(tmp_path)
    refused = 0
    # Of many outputs only some of the calls, which are much alike.
    for call in calls_to_try(len(names))[:: 4 if "--each" in command.options else 1]:
        done = command(at=call, run=f"find {tmp_path} {what} -exec rm -rf {{}} +")
        if done.returncode == 0:
            assert digest(command.output) == complete, call
        else:
            refused += 1
            assert done.returncode == 2, (call, done.stderr)
            assert done.stderr.count("\n") == 1
            if command.output.exists():
                assert "--each" in command.options
                assert is_part_of(snapshot(command.output), complete), call
        remove(command.output)
        assert snapshot(tmp_path) == before, call
    assert refused >= 2


@pytest.mark.parametrize(("kind", "missing"), [("folder", ""), ("file", ""), ("file", "renameat2")])
def test_a_temporary_is_removed_while_another_output_is_replaced(
    commands, tiny, one_file, tmp_path, missing, kind
):
    """The new one is there, or the old one is, whole; never a part of either."""
    inputs = tiny if kind == "folder" else one_file
    merge = Merge(commands, inputs, tmp_path, "--force")
    total = len(merge.calls(missing=missing))
    new = digest(merge.output)
    for call in calls_to_try(total):
        remove(merge.output)
        ne.merge_checkpoint(inputs[0], tiny_adapter(seed=3), merge.output)
        old = digest(merge.output)
        clean = f"find {tmp_path} -name '.nola-edge-*' -prune -exec rm -rf {{}} +"
        done = merge(at=call, run=clean, missing=missing)
        if done.returncode == 0:
            assert digest(merge.output) == new, call
        elif merge.output.exists():
            assert digest(merge.output) == old, call
        else:  # the old one was where it is tidied up, since the two could not be exchanged
            assert missing
        assert not single.leftovers(tmp_path)


@pytest.mark.parametrize("missing", ["", "renameat2"])
def test_two_writers_of_one_output(commands, one_file, tmp_path, missing):
    """With locks that exclude nobody: both run through, one is refused, no temporary is lost."""
    first = Merge(commands, one_file, tmp_path)
    log = tmp_path / "status"
    tiny_adapter(seed=3).save(tmp_path / "other")
    ne.merge_checkpoint(one_file[0], tmp_path / "other", tmp_path / "wanted")
    theirs = digest(tmp_path / "wanted")
    total = first.count()
    ours = digest(first.output)
    second = (
        f"{sys.executable} -m nola_edge merge {one_file[0]} {tmp_path}/other "
        f"-o {first.output} -q; echo $? >{log}"
    )
    for call in range(1, total + 1, 2):
        first.output.unlink()
        done = first(at=call, run=second, missing=missing)
        found = digest(first.output)
        statuses = done.returncode, int(log.read_text())
        assert statuses in [(0, 2), (2, 0)], (call, done.stderr)
        assert found == (ours if statuses[0] == 0 else theirs)
        assert not single.leftovers(tmp_path)


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("folder", ""), ("folder", "renameat2"),
        ("file", ""), ("file", "renameat2"), ("file", "renameat2,link"),
    ],
)  # fmt: skip
def test_something_appears_at_every_call(commands, tiny, one_file, tmp_path, missing, kind):
    """--force replaces an earlier merge, and never what somebody has put there meanwhile."""
    inputs = tiny if kind == "folder" else one_file
    merge = Merge(commands, inputs, tmp_path, "--force")
    precious = merge.output / "thesis.txt" if kind == "folder" else merge.output
    appears = f"mkdir -p {merge.output} 2>/dev/null" if kind == "folder" else "true"
    appears += f"; echo precious >{precious}.new; mv {precious}.new {precious}"
    merge()
    names = merge.calls(missing=missing)
    for call in calls_to_try(len(names)):
        if kind == "file" and "link" in missing and "rename" not in names[call:]:
            break  # nothing but a look comes before a plain rename, and this is after the look
        remove(merge.output)
        ne.merge_checkpoint(inputs[0], tiny_adapter(seed=3), merge.output)
        done = merge(at=call, run=appears, missing=missing)
        assert done.returncode in (0, 2), done.stderr
        assert precious.read_text() == "precious\n", (call, done.stderr)
        assert not single.leftovers(tmp_path)
        kept = [path for path in tmp_path.iterdir() if ".replaced-" in path.name]
        for path in kept:  # it came between the two renames: both are there
            assert "renameat2" in missing
            assert done.returncode == 2
            assert path.name in done.stderr
            remove(path)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_kill_between_two_renames(commands, tiny, one_file, tmp_path, kind):
    """Without an exchange in one step the old output is put back by the next run."""
    inputs = tiny if kind == "folder" else one_file
    merge = Merge(commands, inputs, tmp_path, "--force")
    total = len(merge.calls())
    new = digest(merge.output)
    absent = 0
    for call in [*calls_to_try(total), total + 1, total + 2]:
        remove(merge.output)
        ne.merge_checkpoint(inputs[0], tiny_adapter(seed=3), merge.output)
        old = digest(merge.output)
        merge(at=call, signal=int(signal.SIGKILL), missing="renameat2")
        absent += not merge.output.exists()
        merge.options = ()
        assert merge().returncode == 2  # there is an output, and this one may not replace it
        assert digest(merge.output) in (old, new), call
        merge.options = ("--force",)
        assert merge().returncode == 0
        assert digest(merge.output) == new
        assert not single.leftovers(tmp_path)
    assert absent > 0


LACKING = [
    {"missing": "renameat2,link"},
    {"missing": "renameat2,link,fsync_folder,copy_file_range"},
    {"name": "copy_file_range", "errno": errno.EBADF},
    {"name": "copy_file_range", "errno": errno.ETXTBSY},
    {"name": "copy_file_range", "nothing": 1},
]


@pytest.mark.parametrize("fault", LACKING)
@pytest.mark.parametrize("options", [(), ("--force",)])
def test_file_systems_that_lack_calls(command, tmp_path, fault, options):
    """The output is complete all the same, new or in another's place."""
    command()
    complete = digest(command.output)
    if not options:
        remove(command.output)
    command.options = (*command.options, *options)
    done = command(**fault)
    assert done.returncode == 0, done.stderr
    assert digest(command.output) == complete
    assert not list(tmp_path.rglob(".nola-edge-*"))


def test_a_file_system_that_exchanges_nothing(commands, tiny, tmp_path):
    """Whatever it says."""
    merge = Merge(commands, tiny, tmp_path, "--force")
    merge()
    complete = digest(merge.output)
    for code in (errno.EPERM, errno.EXDEV, errno.ENOSYS):
        assert merge(name="renameat2", errno=code).returncode == 0
        assert digest(merge.output) == complete


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts an overlay, which needs root")
def test_a_folder_of_a_lower_layer(tiny, tmp_path):
    """It cannot be moved, which is said before the work; what is in the upper layer can."""
    lower, upper, work, mount = (tmp_path / name for name in ("lower", "upper", "work", "mount"))
    for folder in (lower, upper, work, mount):
        folder.mkdir()
    ne.merge_checkpoint(*tiny, lower / "out")
    options = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=off"
    if subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, mount]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        before = snapshot(mount)
        said = []
        with pytest.raises(OutputError, match="lower layer of an overlay"):
            ne.merge_checkpoint(*tiny, mount / "out", force=True, progress=said.append)
        assert not said
        assert snapshot(mount) == before
        for _ in range(2):
            ne.merge_checkpoint(*tiny, mount / "new", force=True)
        assert snapshot(mount / "new") == snapshot(mount / "out")
    finally:
        subprocess.run(["umount", mount], check=True)
