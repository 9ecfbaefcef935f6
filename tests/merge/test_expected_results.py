"""Only the result that a packed adapter expects of a base is put in place."""

from __future__ import annotations

import dataclasses
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.adapters.fingerprints import _windows
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import MismatchError, NolaEdgeError
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.gguf import GgufFile
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.gguf import expect_gguf, merge_gguf
from nola_edge.merge.expectation import Expectation
from tests.cli.in_process import call, refused
from tests.conftest import load_all, snapshot, write_safetensors, write_sharded
from tests.gguf.test_merge import adapter_of, arrays_of, write

#: Of 14 kB each, of which the fingerprint sees 4 kB.
MODULES = {f"layers.{n}.q": (72, 96) for n in range(3)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A base, a packed adapter that expects a result of it, and that result."""
    folder = tmp_path_factory.mktemp("published")
    rng = np.random.default_rng(8)
    tensors = {"embed.weight": rng.standard_normal((50, 40)).astype(ml_dtypes.bfloat16)}
    for name, shape in MODULES.items():
        tensors[f"{name}.weight"] = rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    base = folder / "base"
    write_sharded(base, tensors, 2)
    (base / "config.json").write_text('{"model_type": "tiny"}')
    (base / "README.md").write_text("a model")
    (base / "sub").mkdir()
    (base / "sub" / "tokenizer.txt").write_text("tokens")
    pack(folder / "a.nola", base)
    ne.merge_checkpoint(base, folder / "a.nola", folder / "right")
    return folder


def pack(path, *bases, record=True, **options):
    """Pack an adapter that expects results of bases; it records the first as its own."""
    adapter = trained_adapter(MODULES, r=4, num_basis=10, seed=11)
    found = [ne.expect_checkpoint(base, adapter, **options) for base in bases]
    if record:
        config = dataclasses.replace(adapter.config, base_fingerprint=found[0].base_fingerprint)
        adapter = ne.Adapter(config, adapter.modules)
    adapter.pack(path, expect=found)


@pytest.fixture
def copy(published, tmp_path):
    """The same in a folder of the test's own."""
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_the_result_is_said_to_be_the_right_one(copy):
    report = ne.merge_checkpoint(copy / "base", copy / "a.nola", copy / "out")
    assert report.expected_of == "base"
    assert snapshot(copy / "out") == snapshot(copy / "right")
    done = call("merge", copy / "base", copy / "a.nola", "-o", copy / "again")
    assert "\n  the result is the one that the adapter expects of base\n" in done.stdout
    done = call("merge", copy / "base", copy / "a.nola", "-o", copy / "third", "--json")
    assert json.loads(done.stdout)["expected_of"] == "base"


def test_an_adapter_that_expects_nothing(copy):
    ne.Adapter.load(copy / "a.nola").save(copy / "adapter")
    report = ne.merge_checkpoint(copy / "base", copy / "adapter", copy / "out")
    assert (report.expected_of, report.notes) == (None, ())
    done = call("merge", copy / "base", copy / "adapter", "-o", copy / "plain")
    assert "the adapter expects" not in done.stdout


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def attempt(merge, *arguments):
    """Return the report of a merge, or why it is refused."""
    try:
        return merge(*arguments)
    except NolaEdgeError as error:
        return str(error)


INPUTS = [
    "a.nola",
    "base/README.md",
    "base/config.json",
    "base/model-00001-of-00002.safetensors",
    "base/model-00002-of-00002.safetensors",
    "base/model.safetensors.index.json",
    "base/sub/tokenizer.txt",
]


@settings(max_examples=150)
@given(name=st.sampled_from(INPUTS), bit=st.integers(0, 1 << 20))
def test_any_bit_of_adapter_or_base(published, tmp_path_factory, name, bit):
    """Another result is refused; a bit that rounding takes back changes none."""
    folder = tmp_path_factory.mktemp("flipped")
    shutil.copytree(published, folder, dirs_exist_ok=True)
    flip(folder / name, bit)
    before = snapshot(folder)
    found = attempt(ne.merge_checkpoint, folder / "base", folder / "a.nola", folder / "out")
    if isinstance(found, str):
        assert found.isprintable()
        assert snapshot(folder) == before
    else:
        assert found.expected_of == "base"
        assert snapshot(folder / "out") == snapshot(published / "right")
    shutil.rmtree(folder)


@given(bit=st.integers(0, 1 << 20))
@example(bit=0)
def test_any_bit_of_the_result_before_it_is_in_place(published, tmp_path_factory, bit):
    folder = tmp_path_factory.mktemp("flipped")
    names = sorted(ne.content_hash(published / "right").files)
    check = Expectation.check

    def flipped(self, path, *arguments):
        flip(path / names[bit % len(names)], bit)
        return check(self, path, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Expectation, "check", flipped)
        with pytest.raises(MismatchError, match="would not be what"):
            ne.merge_checkpoint(published / "base", published / "a.nola", folder / "out")
    assert snapshot(folder) == {}


def unseen_bit(base, tensor):
    """Return a file, and a bit of a weight's exponent in it that no fingerprint sees."""
    with Checkpoint.open(base) as checkpoint:
        file, info = checkpoint.tensors[tensor]
        seen = {at for begin, count in _windows(info.nbytes) for at in range(begin, begin + count)}
        high_bytes = range(1, info.nbytes, 2)
        place = next(at for at in high_bytes if at not in seen)
        return file.path, 8 * (info.start + place) + 6


def test_a_bit_that_no_fingerprint_sees(copy):
    """In place is what was there before, with --force too."""
    path, bit = unseen_bit(copy / "base", "layers.1.q.weight")
    flip(path, bit)
    shutil.copytree(copy / "right", copy / "out")
    before = snapshot(copy)
    with pytest.raises(MismatchError) as caught:
        ne.merge_checkpoint(copy / "base", copy / "a.nola", copy / "out", force=True)
    right = ne.content_hash(copy / "right").files[path.name]
    message = str(caught.value)
    assert message.startswith(f"{copy / 'out'}: expected: would not be what ")
    assert f"a.nola expects of 'base': {path.name} would have the SHA-256 " in message
    assert f", not {right}; the base is not the publisher's to the bit, or was dam" in message
    assert message.endswith("pass --no-check-result (in Python check_result=False)")
    assert "--no-check-result" in refused(
        "merge", copy / "base", copy / "a.nola", "-o", copy / "new"
    )
    assert snapshot(copy) == before
    done = call("merge", copy / "base", copy / "a.nola", "-o", copy / "new", "--no-check-result")
    assert done.returncode == 0
    assert "the result was not compared with what the adapter expects: --no-che" in done.stdout
    assert snapshot(copy / "new") != snapshot(copy / "right")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda base: (base / "README.md").write_text("better"), "README.md would have the SHA"),
        (lambda base: (base / "README.md").unlink(), "README.md with the SHA-256 .* missing"),
        (lambda base: (base / "new.txt").touch(), "new.txt with the SHA-256 .* is not part of"),
    ],
)
def test_only_what_is_carried_over(copy, change, said):
    change(copy / "base")
    before = snapshot(copy)
    with pytest.raises(MismatchError, match=f"{said}.*only files that are carried over from the b"):
        ne.merge_checkpoint(copy / "base", copy / "a.nola", copy / "out")
    assert snapshot(copy) == before
    report = ne.merge_checkpoint(copy / "base", copy / "a.nola", copy / "out", check_result=False)
    assert report.expected_of is None
    for path in (copy / "right").glob("*.safetensors"):
        assert (copy / "out" / path.name).read_bytes() == path.read_bytes()


def test_the_same_weights_in_other_files(copy):
    tensors = load_all(copy / "base")
    for path in (copy / "base").glob("model*"):
        path.unlink()
    write_sharded(copy / "base", tensors, 3)
    before = snapshot(copy)
    with pytest.raises(MismatchError, match=r"and \d more differ; the base's weights are in other"):
        ne.merge_checkpoint(copy / "base", copy / "a.nola", copy / "out")
    assert snapshot(copy) == before


def test_another_kind_of_base_gets_a_note(copy):
    """One that the adapter can say nothing of is no mistake."""
    pack(copy / "b.nola", copy / "base", record=False)
    tensors = load_all(copy / "base")
    write_safetensors(copy / "one.safetensors", tensors)
    report = ne.merge_checkpoint(copy / "one.safetensors", copy / "b.nola", copy / "o.safetensors")
    note = (
        "the adapter expects results for base only: the result was not compared with what the "
        "adapter expects"
    )
    assert (report.expected_of, report.notes) == (None, (note,))
    tensors["layers.0.q.weight"] = tensors["layers.0.q.weight"][::-1]
    write_safetensors(copy / "other.safetensors", tensors)
    done = call("merge", copy / "other.safetensors", copy / "b.nola", "-o", copy / "p.safetensors")
    assert f"  note: {note}\n" in done.stdout


def test_another_base_of_the_kind_is_refused(copy):
    """Damaged where the fingerprint looks, it is another one."""
    pack(copy / "b.nola", copy / "base", record=False)
    (path,) = (p for p in (copy / "base").glob("*.safetensors") if has(p, "layers.0.q.weight"))
    with SafetensorsFile.open(path) as file:
        flip(path, 8 * file.tensors["layers.0.q.weight"].start)
    before = snapshot(copy)
    line = refused("merge", copy / "base", copy / "b.nola", "-o", copy / "out")
    assert "b.nola: expected: is of base, and this base, with the fingerprint " in line
    assert snapshot(copy) == before
    done = call("merge", copy / "base", copy / "b.nola", "-o", copy / "out", "--no-check-result")
    assert done.returncode == 0
    assert (
        "  note: the result was not compared with what the adapter expects: --no-c" in done.stdout
    )


def has(path, tensor):
    with SafetensorsFile.open(path) as file:
        return tensor in file.tensors


def test_a_base_that_is_known_by_the_result_alone(copy):
    pack(copy / "b.nola", copy / "base", record=False)
    done = call("merge", copy / "base", copy / "b.nola", "-o", copy / "out", "--json")
    found = json.loads(done.stdout)
    assert (found["expected_of"], found["base_checked"]) == ("base", True)
    done = call("merge", copy / "base", copy / "b.nola", "-o", copy / "again", "--no-check-base")
    assert "the adapter expects of base" in done.stdout
    assert "not checked" not in done.stdout


def test_several_bases(copy):
    """And two of one fingerprint, such as revisions of a model's card."""
    shutil.copytree(copy / "base", copy / "newer")
    (copy / "newer" / "README.md").write_text("better")
    write_safetensors(copy / "one.safetensors", load_all(copy / "base"))
    bases = [copy / "base", copy / "newer", copy / "one.safetensors"]
    pack(copy / "b.nola", *bases)
    for base in bases:
        out = copy / f"out of {base.name}"
        assert ne.merge_checkpoint(base, copy / "b.nola", out).expected_of == base.name
    (copy / "newer" / "config.json").write_text("{}")
    with pytest.raises(MismatchError, match=r"expects of 'newer': config\.json would have"):
        ne.merge_checkpoint(copy / "newer", copy / "b.nola", copy / "out")


OTHER_MERGES = {
    "a weight": lambda f: {"adapter": [(f / "a.nola", 0.5)]},
    "two adapters": lambda f: {"adapter": [f / "a.nola", f / "a.nola"]},
    "a rule": lambda f: {"rename": {"layers.0": "layers.0"}},
}


@pytest.mark.parametrize("merge", OTHER_MERGES)
def test_another_merge_is_not_compared(copy, merge):
    options = {"adapter": copy / "a.nola", **OTHER_MERGES[merge](copy)}
    report = ne.merge_checkpoint(copy / "base", output=copy / "out", **options)
    assert report.expected_of is None
    (note,) = report.notes
    assert note.startswith("the result was not compared with what the adapter expects, which is of")


def test_a_hash_of_the_callers(copy):
    """Both are compared."""
    sha256 = ne.content_hash(copy / "right").sha256
    merge = [copy / "base", copy / "a.nola", copy / "out"]
    before = snapshot(copy)
    with pytest.raises(MismatchError, match="as expected: base, adapters, weights"):
        ne.merge_checkpoint(*merge, expect="0" * 64)
    assert snapshot(copy) == before
    assert ne.merge_checkpoint(*merge, expect=sha256).expected_of == "base"


def test_each_of_many_adapters(copy):
    shutil.copy(copy / "a.nola", copy / "b.nola")
    ne.Adapter.load(copy / "a.nola").save(copy / "plain")
    adapters = [copy / "a.nola", copy / "plain", copy / "b.nola"]
    reports = ne.merge_each(copy / "base", adapters, copy / "out")
    assert [report.expected_of for report in reports] == ["base", None, "base"]
    (copy / "base" / "README.md").write_text("better")
    before = snapshot(copy)
    line = refused("merge", copy / "base", *adapters, "--each", "-o", copy / "new")
    assert "only files that are carried over" in line
    assert snapshot(copy) == before
    done = call(
        "merge", copy / "base", *adapters, "--each", "-o", copy / "new", "--no-check-result"
    )
    assert done.returncode == 0, done
    assert "--no-check-result" in done.stdout


@pytest.fixture(scope="module")
def published_gguf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write(folder / "base.gguf", arrays_of("Q4_1"))
    adapter_of().pack(folder / "a.nola", expect=[expect_gguf(folder / "base.gguf", adapter_of())])
    merge_gguf(folder / "base.gguf", folder / "a.nola", folder / "right.gguf")
    return folder


def test_a_gguf_file(published_gguf, tmp_path):
    base, adapter = published_gguf / "base.gguf", published_gguf / "a.nola"
    report = merge_gguf(base, adapter, tmp_path / "out.gguf")
    assert (report.expected_of, report.notes) == ("base.gguf", ())
    done = call("merge", base, adapter, "-o", tmp_path / "b.gguf")
    assert "  the result is the one that the adapter expects of base.gguf\n" in done.stdout
    assert "the base was not checked" not in done.stdout
    found = json.loads(call("merge", base, adapter, "-o", tmp_path / "c.gguf", "--json").stdout)
    assert (found["expected_of"], found["base_checked"], found["notes"]) == ("base.gguf", True, [])


@pytest.mark.parametrize("options", [{"outtype": "F16"}, {"rounding": "amplified"}])
def test_gguf_options_that_change_the_result(published_gguf, tmp_path, options):
    base, adapter = published_gguf / "base.gguf", published_gguf / "a.nola"
    report = merge_gguf(base, adapter, tmp_path / "out.gguf", **options)
    assert report.expected_of is None
    assert "not compared with what the adapter expects, which is of" in report.notes[0]
    words = [f"--{name}={value.lower()}" for name, value in options.items()]
    done = call("merge", base, adapter, "-o", tmp_path / "b.gguf", *words, "--json")
    assert json.loads(done.stdout)["notes"][1:] == list(report.notes)


@settings(max_examples=80)
@given(bit=st.integers(0, 1 << 24))
def test_any_bit_of_a_gguf_file(published_gguf, tmp_path_factory, bit):
    """Under a window of the fingerprint it makes another base, which is refused too."""
    folder = tmp_path_factory.mktemp("flipped")
    shutil.copy(published_gguf / "base.gguf", folder)
    flip(folder / "base.gguf", bit)
    before = snapshot(folder)
    out = folder / "out.gguf"
    found = attempt(merge_gguf, folder / "base.gguf", published_gguf / "a.nola", out)
    if isinstance(found, str):
        assert found.isprintable()
        assert snapshot(folder) == before
    else:
        assert out.read_bytes() == (published_gguf / "right.gguf").read_bytes()


def test_a_gguf_bit_that_no_fingerprint_sees(published_gguf, tmp_path):
    shutil.copy(published_gguf / "base.gguf", tmp_path)
    with GgufFile.open(tmp_path / "base.gguf") as file:
        bit = 8 * file.tensors["token_embd.weight"].start
    flip(tmp_path / "base.gguf", bit)
    base, adapter = tmp_path / "base.gguf", published_gguf / "a.nola"
    before = snapshot(tmp_path)
    line = refused("merge", base, adapter, "-o", tmp_path / "out.gguf")
    right = ne.content_hash(published_gguf / "right.gguf").sha256
    assert f"not {right}, which {adapter} expects of 'base.gguf'; the base is not" in line
    assert snapshot(tmp_path) == before
    done = call("merge", base, adapter, "-o", tmp_path / "out.gguf", "--no-check-result")
    assert "  the base was not checked" in done.stdout
    assert "--no-check-result" in done.stdout
