"""The chunked loss is the plain one: values and every gradient, against float64 written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bottleneck.config import ComputeConfig, MeshConfig
from bottleneck.model.head import HeadFactors
from bottleneck.model.kernels import loss, loss_pieces
from bottleneck.model.loss import cross_entropy, token_losses
from bottleneck.parallel.mesh import make_mesh

B, L, D, R, V, VOCAB = 3, 37, 16, 5, 101, 97  # nothing divides anything; 4 rows are padding
Z_LOSS = 0.01


@pytest.fixture(autouse=True, params=["cpu", "gpu", "tpu"])
def _path(request, monkeypatch):
    """Everything is tested in the ways of all devices."""
    for module in (loss, loss_pieces):
        monkeypatch.setattr(module, "platform", lambda: request.param)


def inputs(seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 6)
    hidden = jax.random.normal(keys[0], (B, L, D)).astype(dtype)
    targets = jax.random.randint(keys[3], (B, L), 0, VOCAB)
    weights = jax.random.uniform(keys[4], (B, L)).at[0, 3:9].set(0.0)
    full = HeadFactors(jax.random.normal(keys[1], (V, D)), None, VOCAB)
    factored = HeadFactors(
        jax.random.normal(keys[2], (V, R)), jax.random.normal(keys[5], (R, D)), VOCAB
    )
    return hidden, targets, weights, {"full": full, "factored": factored}


def reference(factors, hidden, targets, weights, z_loss=Z_LOSS, vocab_size=VOCAB):
    """In float64: objective, loss, per-token losses, and the gradients by hidden, rows, basis."""
    basis = np.eye(D) if factors.basis is None else np.asarray(factors.basis, np.float64)
    h, w = np.asarray(hidden, np.float64), np.asarray(weights, np.float64)
    (lse, target_logits), (by_projected, by_rows) = loss.reference(
        vocab_size, z_loss, h @ basis.T, factors.rows, targets, w
    )
    losses = lse - target_logits
    gradients = {
        "hidden": by_projected @ basis,
        "rows": by_rows,
        "basis": np.einsum("blr,bld->rd", by_projected, h),
    }
    return (w * (losses + z_loss * lse**2)).sum(), (w * losses).sum(), losses.ravel(), gradients


def assert_close(actual, expected, rtol):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, atol=rtol * scale, rtol=0)


@pytest.mark.parametrize("kind", ["full", "factored"])
@pytest.mark.parametrize(
    "chunk", [1, B * 10, B * 12, 10_000]
)  # one column, many, 37 = 3·12 + 1, all
@pytest.mark.parametrize("cotangent", [1.0, -2.5])
def test_sums_and_gradients_equal_the_plain_loss(kind, chunk, cotangent):
    hidden, targets, weights, heads = inputs()
    expected, expected_loss, _, expected_gradients = reference(
        heads[kind], hidden, targets, weights
    )

    def objective(factors, hidden):
        total, loss = cross_entropy(factors, hidden, targets, weights, chunk=chunk, z_loss=Z_LOSS)
        return cotangent * total, loss

    (value, loss), (head_gradient, hidden_gradient) = jax.value_and_grad(
        objective, argnums=(0, 1), has_aux=True
    )(heads[kind], hidden)
    # float32 sums over 111 tokens × 97 logits: a few 1e-7 relative to the largest entry.
    assert_close(value, cotangent * expected, 2e-6)
    assert_close(loss, expected_loss, 2e-6)
    assert_close(hidden_gradient, cotangent * expected_gradients["hidden"], 3e-6)
    assert_close(head_gradient.rows, cotangent * expected_gradients["rows"], 3e-6)
    if kind == "factored":
        assert_close(head_gradient.basis, cotangent * expected_gradients["basis"], 3e-6)


def test_the_value_is_the_same_with_and_without_a_gradient():
    hidden, targets, weights, heads = inputs()

    def objective(hidden):
        return cross_entropy(heads["full"], hidden, targets, weights, chunk=30, z_loss=Z_LOSS)[0]

    assert objective(hidden) == jax.value_and_grad(objective)(hidden)[0]


def test_the_reported_loss_carries_no_gradient():
    hidden, targets, weights, heads = inputs()

    def loss(hidden):
        return cross_entropy(heads["full"], hidden, targets, weights, chunk=30, z_loss=Z_LOSS)[1]

    assert not np.any(jax.grad(loss)(hidden))


def test_a_token_of_weight_zero_leaves_no_trace():
    hidden, targets, weights, heads = inputs()
    spoilt = hidden.at[0, 3:9].set(1e4)

    def objective(hidden):
        return cross_entropy(heads["full"], hidden, targets, weights, chunk=30)[0]

    value, gradient = jax.value_and_grad(objective)(hidden)
    spoilt_value, spoilt_gradient = jax.value_and_grad(objective)(spoilt)
    assert value == spoilt_value
    np.testing.assert_array_equal(spoilt_gradient[0, 3:9], 0.0)
    np.testing.assert_array_equal(spoilt_gradient[1:], gradient[1:])


def test_padded_rows_have_no_probability_and_no_gradient():
    hidden, targets, weights, heads = inputs()
    huge = HeadFactors(heads["full"].rows.at[VOCAB:].set(100.0), None, VOCAB)

    def objective(factors):
        return cross_entropy(factors, hidden, targets, weights, chunk=30)[0]

    value, gradient = jax.value_and_grad(objective)(huge)
    assert value == objective(heads["full"])
    np.testing.assert_array_equal(gradient.rows[VOCAB:], 0.0)


@pytest.mark.parametrize("kind", ["full", "factored"])
@pytest.mark.parametrize("chunk", [1, 30, 10_000])
def test_token_losses_equal_the_plain_ones(kind, chunk):
    hidden, targets, weights, heads = inputs()
    _, _, expected, _ = reference(heads[kind], hidden, targets, weights)
    losses = token_losses(heads[kind], hidden, targets, chunk=chunk)
    assert losses.shape == (B, L)
    # Logits reach 40, where neighbouring float32s are 4e-6 apart; their sums round differently.
    np.testing.assert_allclose(losses.reshape(-1), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "factored"])
def test_bfloat16_inputs_lose_only_what_their_rounding_loses(kind):
    hidden, targets, weights, heads = inputs(dtype=jnp.bfloat16)
    _, expected_loss, _, expected = reference(heads[kind], hidden, targets, weights, z_loss=0.0)

    def objective(factors, hidden):
        return cross_entropy(factors, hidden, targets, weights, chunk=30)

    (_, loss), (head_gradient, hidden_gradient) = jax.value_and_grad(
        objective, argnums=(0, 1), has_aux=True
    )(heads[kind], hidden)
    assert loss.dtype == jnp.float32
    assert hidden_gradient.dtype == jnp.bfloat16
    assert head_gradient.rows.dtype == jnp.float32
    # bfloat16 keeps 8 bits: 2^-9 = 0.2 % a rounding. The head, the projection and the logits'
    # gradient are each rounded once, and logits of size 10 move by some 1e-2.
    assert_close(loss, expected_loss, 5e-3)
    assert_close(hidden_gradient, expected["hidden"], 4e-2)
    assert_close(head_gradient.rows, expected["rows"], 4e-2)


def test_large_logits_neither_overflow_nor_become_nan():
    hidden, targets, weights, heads = inputs()

    def objective(hidden):
        return cross_entropy(heads["full"], 1e3 * hidden, targets, weights, chunk=30)[0]

    value, gradient = jax.value_and_grad(objective)(hidden)
    _, expected, _, _ = reference(heads["full"], 1e3 * hidden, targets, weights, z_loss=0.0)
    assert_close(value, expected, 1e-5)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(  # two devices can split six columns, not five
    ("sizes", "rank"), [((1, 2, 2), None), ((2, 2, 1), None), ((1, 2, 2), 5), ((2, 2, 1), 6)]
)
def test_on_a_mesh_that_no_block_of_rows_divides_it_is_the_plain_loss(sizes, rank):
    # 549 or 1,098 rows of a device in blocks of 256, the last row of all a padded one.
    n_rows, vocab_size = 1098, 1097
    source = np.random.default_rng(0)
    hidden = jnp.float32(source.standard_normal((4, 16, D)))
    targets = jnp.int32(source.integers(0, vocab_size, (4, 16)))
    weights = jnp.float32(source.uniform(size=(4, 16)))
    rows = jnp.float32(source.standard_normal((n_rows, rank or D)))
    basis = None if rank is None else jnp.float32(source.standard_normal((rank, D)))
    factors = HeadFactors(rows, basis, vocab_size)
    expected, expected_loss, losses, gradients = reference(
        factors, hidden, targets, weights, vocab_size=vocab_size
    )

    def objective(factors, hidden):
        return cross_entropy(factors, hidden, targets, weights, chunk=8, z_loss=Z_LOSS)

    with jax.set_mesh(make_mesh(MeshConfig(*sizes), jax.devices()[:4])):
        gradient = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
        (value, loss), (by_head, by_hidden) = gradient(factors, hidden)
        of_tokens = jax.jit(lambda factors: token_losses(factors, hidden, targets, chunk=8))(
            factors
        )
    assert_close([value, loss], [expected, expected_loss], 2e-6)
    assert_close(of_tokens.ravel(), losses, 2e-6)
    assert_close(by_hidden, gradients["hidden"], 3e-6)
    assert_close(by_head.rows, gradients["rows"], 3e-6)
    if rank is not None:
        assert_close(by_head.basis, gradients["basis"], 3e-6)


@pytest.mark.parametrize("n_devices", [1, 2])
@pytest.mark.parametrize("height", [5.0, 30.0, 200.0, 3000.0])
def test_logits_far_above_those_of_the_first_rows(height, n_devices):
    # The reference is taken from the first 256 rows. Of the last ones some are higher, for some
    # tokens, and one later block more so than another.
    n_rows, vocab_size = 1000, 990
    source = np.random.default_rng(0)
    hidden = source.standard_normal((4, 16, D)).astype(np.float32)
    rows = source.standard_normal((n_rows, D)).astype(np.float32)
    for at, row in enumerate((300, 700, 950)):
        rows[row] += (1 + at) / 3 * height * hidden[at, 3] / np.sum(hidden[at, 3] ** 2)
    targets = source.integers(0, vocab_size, (4, 16)).astype(np.int32)
    ones = jnp.ones(targets.shape)
    (lse, target_logits), gradients = loss.reference(vocab_size, 0.0, hidden, rows, targets, ones)

    def objective(rows, hidden):
        factors = HeadFactors(rows, None, vocab_size)
        return cross_entropy(factors, hidden, targets, ones, chunk=8)

    mesh = make_mesh(MeshConfig(1, n_devices, 1), jax.devices()[:n_devices])
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
        (value, summed), (by_rows, by_hidden) = gradient(rows, hidden)
        losses = jax.jit(
            lambda rows: token_losses(HeadFactors(rows, None, vocab_size), hidden, targets, chunk=8)
        )(rows)
    expected = lse - target_logits
    assert_close(losses, expected, 1e-6)
    assert_close([value, summed], expected.sum(), 1e-6)
    tolerance = 3e-6 + 1e-8 * height  # float32 logits are rounded by 6e-8 of themselves
    assert_close(by_hidden, gradients[0], tolerance)
    assert_close(by_rows, gradients[1], tolerance)


@pytest.mark.parametrize("rank", [None, 512])
def test_value_and_gradient_of_32k_tokens_need_little_memory(rank):
    # What the compiler plans beyond inputs and results; the logits alone would be 6.6 GB.
    n_rows, width = 50_304, 1024
    tokens = jax.ShapeDtypeStruct((16, 2048), jnp.int32)
    weights = jax.ShapeDtypeStruct((16, 2048), jnp.float32)
    hidden = jax.ShapeDtypeStruct((16, 2048, width), jnp.bfloat16)
    rows = jax.ShapeDtypeStruct((n_rows, rank or width), jnp.float32)
    basis = None if rank is None else jax.ShapeDtypeStruct((rank, width), jnp.float32)

    def objective(factors, hidden, targets, weights):
        return cross_entropy(factors, hidden, targets, weights, chunk=ComputeConfig().loss_chunk)

    gradient = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    compiled = gradient.lower(HeadFactors(rows, basis, 50_277), hidden, tokens, weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5e9


def test_on_a_cpu_logits_are_made_moved_and_exponentiated_and_nothing_else(monkeypatch):
    monkeypatch.setattr(loss, "platform", lambda: "cpu")
    hidden, targets, weights, heads = inputs()

    def objective(hidden, factors):
        return cross_entropy(factors, hidden, targets, weights, chunk=30)[0]

    program = jax.make_jaxpr(jax.grad(objective, argnums=(0, 1)))(hidden, heads["full"])
    (scan,) = [step for step in program.eqns if step.primitive.name == "scan"]
    passes = [
        step.primitive.name
        for step in scan.params["jaxpr"].eqns
        if any(result.aval.shape == (30, VOCAB) for result in step.outvars)
    ]
    assert passes == ["dot_general", "sub", "exp"]
