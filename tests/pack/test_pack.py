"""A pack holds the whole model and nothing twice, and no damaged or edited one is believed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from orbitmesh.errors import InvalidInputError, MeshError, PackError, TransportError, UnknownModelError
from orbitmesh.pack import Manifest, load_manifest, read_verified, verify_files
from orbitmesh.pack.builder import build_pack
from orbitmesh.pack.manifest import MANIFEST_MAX_BYTES
from tests.models_for_tests import FAMILIES, make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("deepseek_v3", tmp_path_factory.mktemp("model") / "tiny", seed=1, num_hidden_layers=3)


@pytest.fixture(scope="module")
def built(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("packs") / "pack"
    build_pack(model, dest, now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    return dest


@pytest.fixture
def pack(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(built, tmp_path / "pack"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pack_holds_every_tensor_of_the_model_once(family: str, tmp_path: Path) -> None:
    """Read back, the files are the state of transformers' own model, bit for bit; a tied head once."""
    source = make_model(family, tmp_path / "model", seed=2)
    manifest = build_pack(source, tmp_path / "pack")
    found: dict[str, torch.Tensor] = {}
    for file in manifest.files:
        if file.name.endswith(".safetensors"):
            for key, tensor in load_file(tmp_path / "pack" / file.name).items():
                if file.name.startswith("layer-"):
                    whole = f"model.layers.{int(file.name[6:8])}.{key}"
                else:
                    whole = key if key.startswith("lm_head") else f"model.{key}"
                assert whole not in found
                found[whole] = tensor
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    if manifest.tied:
        expected.pop("lm_head.weight")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_manifest_says_what_the_model_is(built: Path) -> None:
    """Sizes, names and hashes are those of the configuration and of the files, by a second count."""
    manifest = load_manifest(built)
    assert (manifest.name, manifest.architecture, manifest.dtype) == ("tiny", "deepseek_v3", "float32")
    assert (manifest.layer_count, manifest.hidden_size, manifest.vocab_size) == (3, 48, 259)
    assert (manifest.context_tokens, manifest.tied, manifest.eos_token_ids) == (1024, False, (256,))
    assert manifest.created_at == "2026-01-02T03:04:05Z"
    on_disk = {path.name: path.read_bytes() for path in built.iterdir()}
    assert Manifest.parse(on_disk.pop("manifest.json")) == manifest
    assert {file.name: (file.size_bytes, file.sha256) for file in manifest.files} == {
        name: (len(data), sha256(data).hexdigest()) for name, data in on_disk.items()
    }
    assert manifest.layer_bytes == tuple(len(on_disk[f"layer-0{index}.safetensors"]) for index in range(3))
    tokenizer = AutoTokenizer.from_pretrained(built)
    assert tokenizer.decode(tokenizer("Space is ü").input_ids) == "Space is ü"


def test_end_tokens_are_those_that_generate_stops_at(model: Path, tmp_path: Path) -> None:
    """The generation configuration may name several end tokens; all of them are in the manifest."""
    source = Path(shutil.copytree(model, tmp_path / "model"))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 3]}))
    assert build_pack(source, tmp_path / "pack").eos_token_ids == (256, 3)


def test_a_stage_names_the_files_it_reads(built: Path) -> None:
    """The first stage reads the embedding, the last the head, and with a tied head the embedding too."""
    manifest = load_manifest(built)
    assert set(manifest.files_for(range(1))) == {
        "config.json",
        "embed.safetensors",
        "layer-00.safetensors",
    }
    assert set(manifest.files_for(range(1, 2))) == {"config.json", "layer-01.safetensors"}
    assert set(manifest.files_for(range(2, 3))) == {"config.json", "head.safetensors", "layer-02.safetensors"}
    tied = dataclasses.replace(manifest, tied=True)
    assert "embed.safetensors" in tied.files_for(range(2, 3))


def test_progress_counts_up_to_the_whole(model: Path, built: Path, tmp_path: Path) -> None:
    """Both building and verifying report bytes that rise to the total."""
    for act in (
        lambda report: build_pack(model, tmp_path / "pack", progress=report),
        lambda report: verify_files(load_manifest(built), built, progress=report),
    ):
        seen: list[tuple[int, int]] = []
        act(lambda _name, done, total, seen=seen: seen.append((done, total)))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1][0] == seen[-1][1] > 0


# --- damage ---


def test_one_flipped_byte_in_any_file_is_found(pack: Path) -> None:
    """Wherever the byte is, the error names the file and both hashes."""
    manifest = load_manifest(pack)
    verify_files(manifest, pack)
    for file in manifest.files:
        path = pack / file.name
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            damaged = sha256(path.read_bytes()).hexdigest()[:16]
            for check in (
                partial(verify_files, manifest, pack),
                partial(read_verified, manifest, pack, file.name),
            ):
                with pytest.raises(PackError, match=f"{file.name} is damaged") as caught:
                    check()
                assert caught.value.reason == "PACK_DAMAGED"
                assert caught.value.metadata["expected_sha256"] == file.sha256[:16]
                assert caught.value.metadata["found_sha256"] == damaged
        path.write_bytes(whole)
    verify_files(manifest, pack)


def test_a_missing_shorter_or_longer_file_is_found(pack: Path) -> None:
    """The size is compared first, so that a huge file in its place is not read."""
    manifest = load_manifest(pack)
    path = pack / "head.safetensors"
    whole = path.read_bytes()
    for data in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(data)
        with pytest.raises(PackError, match=r"head\.safetensors is \d+ bytes, the manifest says"):
            verify_files(manifest, pack, ["head.safetensors"])
    path.unlink()
    with pytest.raises(PackError, match=r"head\.safetensors is missing"):
        verify_files(manifest, pack)
    path.mkdir()
    with pytest.raises(PackError, match=r"head\.safetensors is missing"):
        verify_files(manifest, pack)
    verify_files(manifest, pack, ["config.json"])


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another format version": lambda m: m.update(format_version=2),
    "an unknown field": lambda m: m.update(extra=1),
    "a missing field": lambda m: m.pop("dtype"),
    "an unsupported architecture": lambda m: m.update(architecture="gpt2"),
    "an unknown dtype": lambda m: m.update(dtype="int8"),
    "true for a number": lambda m: m.update(layer_count=True),
    "a fraction for a number": lambda m: m.update(hidden_size=48.0),
    "a negative number": lambda m: m.update(vocab_size=-1),
    "text for a truth": lambda m: m.update(tied="no"),
    "one layer more": lambda m: m.update(layer_count=4),
    "one layer fewer": lambda m: m.update(layer_count=2),
    "a million layers": lambda m: m.update(layer_count=10**6),
    "another layer size": lambda m: m["layer_bytes"].__setitem__(0, 1),
    "a layer size too few": lambda m: m["layer_bytes"].pop(),
    "a cache size too few": lambda m: m["kv_bytes_per_token"].pop(),
    "a cache without size": lambda m: m["kv_bytes_per_token"].__setitem__(0, 0),
    "a file twice": lambda m: m["files"].append(m["files"][0]),
    "a file twice but for case": lambda m: m["files"].append(m["files"][0] | {"name": "CONFIG.json"}),
    "no head": lambda m: m.update(files=[f for f in m["files"] if f["name"] != "head.safetensors"]),
    "a path up": lambda m: m["files"].append(m["files"][0] | {"name": "../evil"}),
    "an absolute path": lambda m: m["files"].append(m["files"][0] | {"name": "/etc/passwd"}),
    "a path of another system": lambda m: m["files"].append(m["files"][0] | {"name": "a\\b"}),
    "a hidden file": lambda m: m["files"].append(m["files"][0] | {"name": ".bashrc"}),
    "a name with a line end": lambda m: m["files"].append(m["files"][0] | {"name": "a\n"}),
    "itself": lambda m: m["files"].append(m["files"][0] | {"name": "manifest.json"}),
    "a hash cut short": lambda m: m["files"][0].update(sha256="ab"),
    "a hash in capitals": lambda m: m["files"][0].update(sha256="A" * 64),
    "a size beyond limits": lambda m: m["files"][0].update(size_bytes=1 << 50),
    "an entry that is no object": lambda m: m["files"].append("config.json"),
    "files that are no list": lambda m: m.update(files={}),
    "too many files": lambda m: m.update(files=m["files"] * 2000),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest_is_refused(edit: str, built: Path) -> None:
    """Each edit that the format forbids is refused when the manifest is read."""
    raw = json.loads((built / "manifest.json").read_bytes())
    EDITS[edit](raw)
    with pytest.raises(PackError) as caught:
        Manifest.parse(json.dumps(raw).encode())
    assert caught.value.reason == "PACK_DAMAGED"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b" " * (MANIFEST_MAX_BYTES + 1),
    ],
    ids=lambda data: repr(data[:16]),
)
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    """Wrong JSON, repeated keys, not-a-number, deep nesting and too many bytes."""
    with pytest.raises(PackError):
        Manifest.parse(data)


@given(
    data=st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_no_bytes_make_the_parser_fail_in_another_way(data: bytes) -> None:
    """Whatever the bytes, the only error is the typed one."""
    with pytest.raises(PackError):
        Manifest.parse(data)


def test_a_manifest_that_is_too_large_or_absent_is_refused_unread(pack: Path) -> None:
    """The reader stops at its bound, and a place without a manifest is an unknown model."""
    (pack / "manifest.json").write_bytes(b" " * (MANIFEST_MAX_BYTES + 1))
    with pytest.raises(PackError, match="larger than"):
        load_manifest(pack)
    (pack / "manifest.json").unlink()
    with pytest.raises(UnknownModelError, match="is not a pack"):
        load_manifest(pack)


# --- sources that cannot be packed ---


def _edit_config(**fields: Any) -> Callable[[Path], None]:
    def edit(source: Path) -> None:
        path = source / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def _pickled(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


def _without_a_tensor(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors.pop("model.layers.1.input_layernorm.weight")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})


BAD_SOURCES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "another family": (_edit_config(model_type="gpt2"), "UNSUPPORTED_MODEL", "deepseek_v3, llama, qwen2"),
    "a family that nobody knows": (_edit_config(model_type=["x"]), "UNSUPPORTED_MODEL", "model_type"),
    "quantised": (
        _edit_config(quantization_config={"quant_method": "fp8"}),
        "UNSUPPORTED_MODEL",
        "quantised",
    ),
    "a rope that looks ahead": (
        _edit_config(
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 64,
                "factor": 16.0,
            }
        ),
        "UNSUPPORTED_MODEL",
        "longrope",
    ),
    "pickled weights": (_pickled, "INVALID_INPUT", "run code"),
    "a tensor missing": (_without_a_tensor, "INVALID_INPUT", "missing_keys"),
    "weights of another width": (
        _edit_config(hidden_size=36),
        "INVALID_INPUT",
        "could not load|not complete",
    ),
    "a cut weights file": (
        lambda source: (
            (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-9])
            and None
        ),
        "INVALID_INPUT",
        "could not load",
    ),
    "a field of the wrong type": (_edit_config(hidden_size="wide"), "INVALID_INPUT", "refuses"),
    "no configuration": (
        lambda source: (source / "config.json").unlink(),
        "INVALID_INPUT",
        "has no config.json",
    ),
    "a configuration that is no JSON": (
        lambda source: (source / "config.json").write_text("{") and None,
        "INVALID_INPUT",
        "not valid JSON",
    ),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_source_that_cannot_be_split_is_refused_with_its_reason(
    name: str, model: Path, tmp_path: Path
) -> None:
    """The error names what is wrong and nothing is left behind."""
    damage, reason, text = BAD_SOURCES[name]
    source = Path(shutil.copytree(model, tmp_path / "model"))
    damage(source)
    with pytest.raises(InvalidInputError, match=text) as caught:
        build_pack(source, tmp_path / "pack")
    assert caught.value.reason == reason
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_hub_out_of_reach_names_the_cure(tmp_path: Path) -> None:
    """Without a network, the error says how to bring the model by hand. Nothing listens on that port."""
    with pytest.raises(TransportError, match="hf download owner/model-that-is-in-no-cache --local-dir DIR"):
        build_pack("owner/model-that-is-in-no-cache", tmp_path / "pack", hub_endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize("source", ["nowhere", "/no/such/place", "../x", Path("owner/model")], ids=str)
def test_a_source_that_is_nothing_is_an_unknown_model(
    source: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a directory nor of the form of a hub id: no network is asked."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UnknownModelError, match="neither a directory nor a hub id"):
        build_pack(source, tmp_path / "pack", hub_endpoint="http://127.0.0.1:9")


def test_a_build_that_is_interrupted_leaves_nothing(model: Path, tmp_path: Path) -> None:
    """The pack appears whole or not at all, also when stopped halfway; then it can be tried again."""

    def stop(name: str, _done: int, _total: int) -> None:
        if name == "layer-01.safetensors":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_pack(model, tmp_path / "pack", progress=stop)
    assert list(tmp_path.iterdir()) == []
    verify_files(build_pack(model, tmp_path / "pack"), tmp_path / "pack")


def test_an_existing_place_is_not_written_over(model: Path, tmp_path: Path) -> None:
    """Neither a finished pack nor an unfinished one of another process is touched."""
    for name in ("pack", "pack.partial"):
        (tmp_path / name).mkdir()
        with pytest.raises(InvalidInputError) as caught:
            build_pack(model, tmp_path / "pack")
        assert caught.value.reason == "ALREADY_EXISTS"
        (tmp_path / name).rmdir()


def test_a_dtype_that_packs_do_not_hold_is_refused(model: Path, tmp_path: Path) -> None:
    """The choices are named."""
    with pytest.raises(MeshError, match="float32, bfloat16, float16") as caught:
        build_pack(model, tmp_path / "pack", dtype="int8")
    assert caught.value.reason == "DTYPE_MISMATCH"


def test_reading_packs_needs_no_model_code() -> None:
    """The SDK and the CLI read manifests in the base install: no torch, transformers or numpy is imported."""
    code = "import sys, orbitmesh.pack; print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
