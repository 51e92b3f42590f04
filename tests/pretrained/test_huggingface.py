"""Released models in and out: what is saved comes back, on any mesh, within its memory."""

import ast
import json
import shlex
import struct
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bottleneck.config import MeshConfig, ModelConfig
from bottleneck.errors import UserError
from bottleneck.model import transformer
from bottleneck.parallel import mesh as mesh_lib
from bottleneck.pretrained import safetensors_folder
from bottleneck.pretrained.huggingface import from_pretrained, save_pretrained
from bottleneck.pretrained.safetensors_folder import conversion


def assert_equal_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def neox(build, tmp_path_factory):
    """(config, parameters, a folder that holds them) of a small GPT-NeoX."""
    config, params = build("gpt_neox", n_layers=2)
    folder = tmp_path_factory.mktemp("neox") / "model"
    save_pretrained(config, params, folder)
    return config, params, folder


@pytest.fixture
def spoilt(neox, tmp_path):
    """Writes the GPT-NeoX's folder anew, its tensors or its config.json changed by a function."""

    def spoil(change_tensors=None, **fields):
        tensors = load_file(neox[2] / "model.safetensors")
        if change_tensors is not None:
            change_tensors(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        record = json.loads((neox[2] / "config.json").read_text()) | fields
        (tmp_path / "config.json").write_text(json.dumps(record))
        return tmp_path

    return spoil


def test_no_parameter_is_left_out_in_silence(neox, tmp_path):
    config, params, _ = neox
    params = params | {"head": params["head"] | {"scale": np.ones(())}}
    with pytest.raises(AssertionError, match=r"left out: .*scale"):
        save_pretrained(config, params, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "llama"])
def test_a_saved_model_comes_back_bit_for_bit(build, family, tmp_path, monkeypatch):
    config, params = build(family)
    monkeypatch.setattr(safetensors_folder, "SHARD_BYTES", 50_000)
    save_pretrained(config, params, tmp_path / "model")
    assert len(list((tmp_path / "model").glob("model-*-of-*.safetensors"))) > 3
    again, loaded = from_pretrained(tmp_path / "model")
    assert again == config
    assert_equal_trees(loaded, params)


@pytest.fixture
def mesh():
    return mesh_lib.make_mesh(MeshConfig(replica=1, fsdp=2, tensor=2))


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])  # joint query, key and value in two ways
def test_a_mesh_gets_the_same_model_in_its_shares(build, family, tmp_path, mesh):
    config, params = build(family, d_ff=98)
    save_pretrained(config, params, tmp_path / "model")
    again, loaded = from_pretrained(tmp_path / "model", mesh=mesh)
    wanted = transformer.shardings(again, mesh)
    as_wanted = jax.tree.map(
        lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), loaded, wanted
    )
    assert all(jax.tree.leaves(as_wanted))
    head = loaded["head"]["rows"]
    assert head.addressable_shards[0].data.shape == (151, 30)  # one row of padding in all
    assert not np.any(head[301:])
    unpadded = jax.tree.map(lambda x, like: x[: len(like)], jax.device_get(loaded), params)
    assert_equal_trees(unpadded, params)


def test_devices_with_the_same_share_read_it_once(neox, monkeypatch):
    read, n_bytes = safetensors_folder.SafetensorsFolder.read, []

    def counted(*arguments):
        values = read(*arguments)
        n_bytes.append(values.nbytes)
        return values

    monkeypatch.setattr(safetensors_folder.SafetensorsFolder, "read", counted)
    from_pretrained(neox[2], mesh=mesh_lib.make_mesh(MeshConfig(replica=2, fsdp=2)))
    assert sum(n_bytes) == sum(leaf.nbytes for leaf in jax.tree.leaves(neox[1]))


def test_what_has_no_even_shares_on_a_mesh_is_named(neox, mesh):
    with pytest.raises(UserError, match=r"^blocks\..* of shape \[.*97.*\] has no even shares on a"):
        from_pretrained(neox[2], mesh=mesh)


def test_a_factored_head_is_saved_as_its_product_without_padded_rows(build, tmp_path):
    config, params = build("gpt_neox", head_rank=7, vocab_multiple=64)
    save_pretrained(config, params, tmp_path / "model")
    again, loaded = from_pretrained(tmp_path / "model")
    assert (again.head_rank, again.vocab_size, again.padded_vocab_size) == (None, 301, 301)
    rows, basis = (np.asarray(params["head"][k], np.float64) for k in ("rows", "basis"))
    # 7 products of float32 numbers, each sum near 1.
    np.testing.assert_allclose(loaded["head"]["rows"], (rows @ basis)[:301], atol=1e-6)
    np.testing.assert_array_equal(loaded["embedding"]["rows"], params["embedding"]["rows"][:301])


def test_a_tied_factored_head_is_saved_as_the_embedding_that_it_is(build, tmp_path):
    config, params = build("gpt2", head_rank=7)
    save_pretrained(config, params, tmp_path / "model")
    again, loaded = from_pretrained(tmp_path / "model")
    assert again.tie_embeddings and "embedding" not in loaded
    product = params["head"]["rows"] @ params["head"]["basis"]
    np.testing.assert_allclose(loaded["head"]["rows"], product, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_exactly(neox, spoilt, dtype):
    def halve(tensors):
        tensors |= {name: value.astype(dtype) for name, value in tensors.items()}

    _, loaded = from_pretrained(spoilt(halve))
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(dtype).astype(np.float32), neox[1])
    assert_equal_trees(loaded, rounded)


def test_biases_that_attention_lacks_are_zeros(neox, spoilt):
    def without_biases(tensors):
        for name in [name for name in tensors if "attention." in name and name.endswith(".bias")]:
            del tensors[name]

    config, loaded = from_pretrained(spoilt(without_biases, attention_bias=False))
    assert config.use_bias
    attention = loaded["blocks"]["attention"]
    assert not any(np.any(part["bias"]) for part in attention.values())
    np.testing.assert_array_equal(
        attention["query"]["kernel"], neox[1]["blocks"]["attention"]["query"]["kernel"]
    )


def test_biases_that_only_the_family_has_are_saved_as_zeros(build, tmp_path):
    config, params = build("gpt2", use_bias=False)
    save_pretrained(config, params, tmp_path / "model")
    again, loaded = from_pretrained(tmp_path / "model")
    assert again.use_bias
    for part in (*loaded["blocks"]["attention"].values(), *loaded["blocks"]["mlp"].values()):
        assert not np.any(part.pop("bias"))
    assert_equal_trees(loaded, params)


def test_buffers_of_older_releases_and_a_missing_prefix_do_no_harm(neox, spoilt):
    def like_older_releases(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("gpt_neox.")] = tensors.pop(name)
        for layer in range(2):
            at = f"layers.{layer}.attention"
            tensors[f"{at}.bias"] = np.ones((1, 1, 5, 5), bool)
            tensors[f"{at}.masked_bias"] = np.array(-1e9, np.float32)
            tensors[f"{at}.rotary_emb.inv_freq"] = np.ones(2, np.float32)

    config, loaded = from_pretrained(spoilt(like_older_releases))
    assert config == neox[0]
    assert_equal_trees(loaded, neox[1])


NORM = "gpt_neox.layers.1.input_layernorm.weight"


def _cut_row(tensors):
    tensors[NORM] = tensors[NORM][1:].copy()


def _clear(tensors):
    tensors.clear()
    tensors |= {name: np.zeros(3, np.float32) for name in "ab"}


def _change_type(tensors):
    tensors[NORM] = tensors[NORM].astype(np.int32)


def _change_type_of_head(tensors):
    tensors["embed_out.weight"] = tensors["embed_out.weight"].astype(np.int32)


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (lambda t: t.pop(NORM), {}, r"lacks tensor layers\.1\.input_layernorm\.weight, going by"),
        (_clear, {}, "lacks tensor .* 27 more"),
        (lambda t: t.update(new=np.zeros(3, np.float32)), {}, "has the surplus tensor new, going"),
        (_cut_row, {}, r"layernorm\.weight has shape \[59\]; .* must have \[60\]"),
        (_change_type, {}, "is of type I32; it must be one of F16, BF16, F32"),
        (
            _change_type_of_head,
            {"tie_word_embeddings": True},
            "embed_out.weight is of type I32; it must be one of F16, BF16, F32",
        ),
        # Their names alone would fill the memory.
        (None, {"num_hidden_layers": 2**31 - 1}, "has 28 tensors, too few for the 2,147,483,647"),
        (
            None,
            {"vocab_size": 2**31 - 1},
            r"embed_in.weight has shape .* must have \[2147483647, 60",
        ),
        (None, {"num_hidden_layers": 1}, r"has the surplus tensor layers\.1\..* and 11 more"),
        (
            None,
            {"tie_word_embeddings": True},
            "embed_out.weight differs from .*tie_word_embeddings=false",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named_in_one_line(spoilt, change, fields, message):
    folder = spoilt(change, **fields)
    with pytest.raises(UserError, match=message) as raised:
        from_pretrained(folder)
    assert "\n" not in str(raised.value)


def test_a_tied_head_that_is_in_the_file_too_is_taken_for_what_it_is(neox, spoilt):
    def tie(tensors):
        tensors["embed_out.weight"] = tensors["gpt_neox.embed_in.weight"]

    config, loaded = from_pretrained(spoilt(tie, tie_word_embeddings=True))
    assert config.tie_embeddings
    np.testing.assert_array_equal(loaded["head"]["rows"], neox[1]["embedding"]["rows"])


def test_what_is_no_whole_folder_of_safetensors_is_refused_in_one_line(spoilt, tmp_path):
    file = spoilt() / "model.safetensors"
    whole = file.read_bytes()
    index = tmp_path / "model.safetensors.index.json"

    def refusal():
        with pytest.raises(UserError) as raised:
            from_pretrained(tmp_path)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    for part in (whole[:-1000], whole[:1000], b""):
        file.write_bytes(part)
        assert f"{file} is not a whole safetensors file" in refusal()
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "b.safetensors"}}))
    file.write_bytes(whole)
    assert "b.safetensors is missing, although the index names it" in refusal()
    index.write_text('{"weight_map": {"a": "\\ud800.safetensors"}}')
    assert "is not a whole safetensors file" in refusal()
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert "model.safetensors lacks the tensor a, which the index places there" in refusal()
    for name in ("../model.safetensors", f"{file}", "x/../model.safetensors", "..", "model.bin"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        assert "may only name .safetensors files beside it" in refusal()
    index.write_text(json.dumps({"weight_map": {"a": "\0.safetensors"}}))
    assert r"\x00.safetensors is missing, although the index names it" in refusal()
    index.write_text("[" * 100_000)
    assert "is not an index of safetensors" in refusal()
    index.write_text("{")
    assert "is not an index of safetensors" in refusal()
    index.unlink()
    file.unlink()
    assert "has no model.safetensors and no" in refusal()
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    message = refusal()
    assert "pytorch_model.bin is a pickle, which can run any code" in message
    assert f'M.from_pretrained("{tmp_path}").save_pretrained("converted")' in message


def _header(shape, span, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


@pytest.mark.parametrize(
    "header",
    [
        {"a": _header([4], [0, 16]), "b": _header([4], [8, 24])},
        {"a": _header([4], [1000, 1016])},
        {"a": _header([4], [16, 0])},
        {"a": _header([4], [-16, 0])},
        {"a": _header([5], [0, 16])},
        {"a": _header([2], [0, 16])},
        {"a": _header([4], [0, 16], "F16")},
        {"a": _header([-4], [0, 16])},
        {"a": _header([2**62, 4], [0, 0])},
        {"a": _header([4], [0, 16], "F99")},
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(spoilt, header):
    text = json.dumps(header).encode()
    path = spoilt() / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(24 if "b" in header else 16))
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        from_pretrained(path.parent)


@pytest.mark.parametrize("n_bytes", [90_000_000, 2**62, 2**64 - 1])
def test_a_header_that_says_it_is_huge_takes_no_memory(spoilt, n_bytes):
    path = spoilt() / "model.safetensors"
    path.write_bytes(struct.pack("<Q", n_bytes) + b"{}" + bytes(16))
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        from_pretrained(path.parent)


@pytest.mark.parametrize(
    "name", ["a model", "x'; touch ran; '", '$(touch ran)"', "`touch ran`", "\\"]
)
def test_the_command_that_converts_a_pickle_is_safe_to_paste(tmp_path, name):
    command = conversion(name, revision=name)
    program = shlex.split(command)
    assert program[:2] == ["python", "-c"] and len(program) == 3
    [call] = [n for n in ast.walk(ast.parse(program[2])) if getattr(n, "keywords", None)]
    assert [call.args[0].value, call.keywords[0].value.value] == [name, name]
    script = f"python() {{ :; }}; {command}"
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)  # noqa: S607
    assert not list(tmp_path.iterdir())


def test_a_model_that_no_family_has_is_refused(build, tmp_path):
    config, params = build("llama")
    parallel = ModelConfig(**vars(config) | {"parallel_residual": True})
    with pytest.raises(UserError, match="llama needs parallel_residual=False"):
        save_pretrained(parallel, params, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(neox, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="exists already; choose a new folder"):
        save_pretrained(*neox[:2], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


PEAK_OF_LOADING = """
    import sys
    import jax
    from bottleneck.pretrained.huggingface import from_pretrained

    def kilobytes(key):
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(key))

    from_pretrained(sys.argv[1])  # what jax itself takes is not of this load
    before = kilobytes("VmRSS:")
    _, params = from_pretrained(sys.argv[2])
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(1024 * (kilobytes("VmHWM:") - before) - kept)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_less_memory_than_its_largest_file(neox, tmp_path, monkeypatch):
    config = ModelConfig(vocab_size=8192, d_model=512, n_heads=8, n_layers=12, d_ff=3000)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0))),
    )
    monkeypatch.setattr(safetensors_folder, "SHARD_BYTES", 60_000_000)
    save_pretrained(config, params, tmp_path / "model")
    del params
    sizes = [path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors")]
    assert len(sizes) > 3 and max(sizes) > 50_000_000
    program = "\n".join(line[4:] for line in PEAK_OF_LOADING.splitlines())
    command = [sys.executable, "-c", program, str(neox[2]), str(tmp_path / "model")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    # What is above the parameters themselves, which on a CPU are in the same memory.
    assert int(answer.stdout) < 1.3 * max(sizes)
