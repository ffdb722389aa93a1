"""`auto` against a step-by-step simulation of the pipeline, on every link rate from 1 Mbit/s to 10 Gbit/s."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.errors import InvalidInputError
from orbitmesh.wire.codecs import CODECS, CodecContext, CodecId
from orbitmesh.wire.policy import (
    FRAME_BYTES,
    TIE_SHARE,
    CodecPolicy,
    CodecRates,
    calibrate,
    choose,
    default_rates,
    lossless_codecs,
    transfer_seconds,
)
from orbitmesh.wire.tensors import DType

MBIT = 1e6
GBIT = 1e9
LINK_RATES = [MBIT * 10 ** (step / 10) for step in range(41)]
SIZES = [512, 3000, 16 * 1024, 300_000, FRAME_BYTES, 5 * FRAME_BYTES, 64 * FRAME_BYTES]


def rates(encode_mb_s: float, decode_mb_s: float, ratio: float, overhead_us: float = 10) -> CodecRates:
    return CodecRates(encode_mb_s * 8e6, decode_mb_s * 8e6, ratio, overhead_us * 1e-6)


PUBLISHED = {
    CodecId.RAW: rates(10_000, 10_000, 1.0, 1),
    CodecId.ZSTD: rates(569, 1240, 0.780, 3),
    CodecId.EXPONENT_SPLIT_ZSTD: rates(615, 1577, 0.680, 10),
}
"""bf16 weights with zstd level 1 as one slower machine measured them."""


def simulated_seconds(codec: CodecRates, link_rate_bps: float, raw_bytes: int) -> float:
    """The arrival of the last frame, frame by frame: each stage takes one frame at a time, in order."""
    encoder = link = decoder = 0.0
    left = raw_bytes
    while left > 0:
        size = min(left, FRAME_BYTES)
        left -= size
        encoder += codec.overhead_s + 8 * size / codec.encode_bps
        link = max(encoder, link) + codec.ratio * 8 * size / link_rate_bps
        decoder = max(link, decoder) + codec.overhead_s + 8 * size / codec.decode_bps
    return decoder


@pytest.mark.parametrize("raw_bytes", SIZES)
def test_auto_is_within_5_percent_of_the_best_fixed_codec_on_every_link(raw_bytes: int) -> None:
    """1 Mbit/s to 10 Gbit/s, 512 B to 64 MiB, lossless and lossy sets, judged by the simulation."""
    measured = {codec: default_rates(codec, DType.FLOAT32) for codec in CODECS}
    for table in (PUBLISHED, measured, {**PUBLISHED, CodecId.INT8_BLOCK: rates(672, 1265, 0.51)}):
        for link_rate_bps in LINK_RATES:
            seconds = {codec: simulated_seconds(table[codec], link_rate_bps, raw_bytes) for codec in table}
            chosen = choose(table, link_rate_bps, raw_bytes)
            assert seconds[chosen] <= 1.05 * min(seconds.values()), (link_rate_bps, chosen)


@given(
    encode=st.floats(1, 20_000),
    decode=st.floats(1, 20_000),
    ratio=st.floats(0.01, 1.01),
    overhead_us=st.floats(0, 100),
    link_mbps=st.floats(0.01, 100_000),
    frames=st.integers(1, 40),
)
@settings(max_examples=200, deadline=None)
def test_the_formula_is_the_time_that_the_simulation_takes(
    encode: float, decode: float, ratio: float, overhead_us: float, link_mbps: float, frames: int
) -> None:
    """For whole frames the makespan in the module's docstring is exact."""
    codec = rates(encode, decode, ratio, overhead_us)
    size = frames * FRAME_BYTES
    expected = simulated_seconds(codec, link_mbps * MBIT, size)
    assert transfer_seconds(codec, link_mbps * MBIT, size) == pytest.approx(expected, rel=1e-9)


def test_raw_is_chosen_on_links_faster_than_encoding_and_the_split_on_slower_ones() -> None:
    """With 615 MB/s encoding the two meet at 4.9 Gbit/s for a long transfer."""
    size = 64 * FRAME_BYTES
    for link_rate_bps in LINK_RATES:
        chosen = choose(PUBLISHED, link_rate_bps, size)
        if link_rate_bps >= 5.1 * GBIT:
            assert chosen is CodecId.RAW
        elif link_rate_bps <= 4.5 * GBIT:
            assert chosen is CodecId.EXPONENT_SPLIT_ZSTD


def test_a_tiny_payload_stays_raw_where_the_call_costs_more_than_the_bytes_it_saves() -> None:
    """At 1 Gbit/s the split saves 5 us of 2 KiB and costs 20 us in calls; at 1 Mbit/s it saves 5 ms."""
    policy = CodecPolicy({DType.BFLOAT16: PUBLISHED})
    assert policy.choose(DType.BFLOAT16, GBIT, 2048) is CodecId.RAW
    assert policy.choose(DType.BFLOAT16, 10 * GBIT, 2048) is CodecId.RAW
    assert policy.choose(DType.BFLOAT16, MBIT, 2048) is CodecId.EXPONENT_SPLIT_ZSTD
    assert policy.choose(DType.BFLOAT16, GBIT, 64 * FRAME_BYTES) is CodecId.EXPONENT_SPLIT_ZSTD


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype], ids=lambda value: value.name)
def test_auto_never_takes_a_lossy_codec_unasked(dtype: DType) -> None:
    """For any type and link, what is chosen without `allowed` returns every bit and takes the type."""
    policy = CodecPolicy()
    for link_rate_bps in LINK_RATES:
        for raw_bytes in SIZES:
            codec = CODECS[policy.choose(dtype, link_rate_bps, raw_bytes)]
            assert codec.lossless and dtype in codec.dtypes


def test_auto_takes_a_lossy_codec_where_it_is_named_and_pays() -> None:
    """int8 on a thin link; codecs that do not take the type are passed over, an empty rest is an error."""
    policy = CodecPolicy()
    both = {CodecId.RAW, CodecId.INT8_BLOCK}
    assert policy.choose(DType.FLOAT32, 10 * MBIT, allowed=both) is CodecId.INT8_BLOCK
    assert policy.choose(DType.INT64, 10 * MBIT, allowed=both) is CodecId.RAW
    with pytest.raises(InvalidInputError, match="int8_block") as caught:
        policy.choose(DType.INT64, 10 * MBIT, allowed={CodecId.INT8_BLOCK})
    assert caught.value.reason == "DTYPE_MISMATCH"
    with pytest.raises(InvalidInputError, match="no codec is allowed"):
        policy.choose(DType.INT64, 10 * MBIT, allowed=set())


def test_a_near_tie_goes_to_the_plainer_codec() -> None:
    """A codec that saves less than TIE_SHARE does not displace raw; one that saves more does."""
    table = {CodecId.RAW: rates(1e6, 1e6, 1.0, 0)}
    for ratio, winner in ((1 - TIE_SHARE / 2, CodecId.RAW), (1 - 2 * TIE_SHARE, CodecId.ZSTD)):
        assert choose({**table, CodecId.ZSTD: rates(1e6, 1e6, ratio, 0)}, 100 * MBIT, FRAME_BYTES) is winner


def test_the_policy_learns_that_a_codec_does_not_compress_its_data() -> None:
    """30 frames of noise teach it that raw is as short as the split; 30 of weights teach it back."""
    policy = CodecPolicy({DType.BFLOAT16: PUBLISHED})
    fast = 8 * FRAME_BYTES / PUBLISHED[CodecId.EXPONENT_SPLIT_ZSTD].encode_bps
    for ratio, expected in ((1.0, CodecId.RAW), (0.68, CodecId.EXPONENT_SPLIT_ZSTD)):
        for _ in range(30):
            for codec in (CodecId.EXPONENT_SPLIT_ZSTD, CodecId.ZSTD):
                coded = int((ratio if codec is CodecId.EXPONENT_SPLIT_ZSTD else 1.0) * FRAME_BYTES)
                policy.observe(codec, DType.BFLOAT16, FRAME_BYTES, coded, encode_s=fast)
        assert policy.choose(DType.BFLOAT16, GBIT) is expected


def test_the_policy_learns_the_rate_of_a_machine_that_became_busy() -> None:
    """40 frames at a tenth of the believed speed bring the belief within 5 % of it, and raw wins."""
    policy = CodecPolicy({DType.BFLOAT16: PUBLISHED})
    slow_s = 10 * 8 * FRAME_BYTES / PUBLISHED[CodecId.EXPONENT_SPLIT_ZSTD].encode_bps
    assert policy.choose(DType.BFLOAT16, 2 * GBIT) is CodecId.EXPONENT_SPLIT_ZSTD
    for codec in (CodecId.EXPONENT_SPLIT_ZSTD, CodecId.ZSTD):
        for _ in range(40):
            policy.observe(
                codec, DType.BFLOAT16, FRAME_BYTES, int(0.68 * FRAME_BYTES), encode_s=slow_s, decode_s=slow_s
            )
        learnt = policy.rates(codec, DType.BFLOAT16)
        assert learnt.encode_bps == pytest.approx(8 * FRAME_BYTES / slow_s, rel=0.05)
        assert learnt.decode_bps == pytest.approx(8 * FRAME_BYTES / slow_s, rel=0.05)
    assert policy.choose(DType.BFLOAT16, 2 * GBIT) is CodecId.RAW


def test_frames_too_small_to_tell_anything_teach_nothing() -> None:
    policy = CodecPolicy()
    before = policy.rates(CodecId.ZSTD, DType.INT32)
    policy.observe(CodecId.ZSTD, DType.INT32, 1024, 4, encode_s=1.0, decode_s=1.0)
    assert policy.rates(CodecId.ZSTD, DType.INT32) == before
    policy.observe(CodecId.ZSTD, DType.INT32, 8192, 4, encode_s=1.0, decode_s=1.0)
    after = policy.rates(CodecId.ZSTD, DType.INT32)
    assert after.ratio < before.ratio
    assert (after.encode_bps, after.decode_bps) == (before.encode_bps, before.decode_bps)


def test_what_was_learnt_of_one_type_says_nothing_of_another() -> None:
    policy = CodecPolicy()
    for _ in range(20):
        policy.observe(CodecId.ZSTD, DType.INT32, FRAME_BYTES, 10)
    assert policy.rates(CodecId.ZSTD, DType.INT32).ratio < 0.05
    assert policy.rates(CodecId.ZSTD, DType.INT64) == default_rates(CodecId.ZSTD, DType.INT64)


def test_a_clock_that_reads_zero_does_not_break_the_rates() -> None:
    """A coarse clock can call a frame instantaneous."""
    policy = CodecPolicy()
    policy.observe(CodecId.ZSTD, DType.INT32, FRAME_BYTES, 10, encode_s=0.0, decode_s=0.0)
    believed = policy.rates(CodecId.ZSTD, DType.INT32)
    before = default_rates(CodecId.ZSTD, DType.INT32)
    assert before.encode_bps < believed.encode_bps < 2 * before.encode_bps


def test_observations_from_many_threads_are_all_counted() -> None:
    """Blending the same value from four threads ends where one thread would end."""
    alone, shared = CodecPolicy(), CodecPolicy()
    for _ in range(40):
        alone.observe(CodecId.ZSTD, DType.INT32, FRAME_BYTES, 1000)

    def work() -> None:
        for _ in range(10):
            shared.observe(CodecId.ZSTD, DType.INT32, FRAME_BYTES, 1000)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.rates(CodecId.ZSTD, DType.INT32) == alone.rates(CodecId.ZSTD, DType.INT32)


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype], ids=lambda value: value.name)
def test_a_calibration_measures_every_codec_that_takes_the_type(dtype: DType) -> None:
    """Its figures are possible, the split's ratio is that of weights, and a policy runs on them."""
    measured = calibrate(dtype, 0.02, context=CodecContext())
    assert set(measured) == {codec.codec_id for codec in CODECS.values() if dtype in codec.dtypes}
    assert measured[CodecId.RAW].ratio == 1.0
    assert all(found.overhead_s < 0.01 and found.encode_bps > 8e6 for found in measured.values())
    if dtype is DType.BFLOAT16:
        assert 0.64 < measured[CodecId.EXPONENT_SPLIT_ZSTD].ratio < 0.69
    policy = CodecPolicy({dtype: measured})
    for codec, found in measured.items():
        assert policy.rates(codec, dtype) == found
    assert policy.choose(dtype, MBIT) in lossless_codecs(dtype) - {CodecId.RAW}


def test_impossible_figures_are_refused() -> None:
    for arguments in ((0, 1, 1, 0), (1, -1, 1, 0), (1, 1, -0.1, 0), (1, 1, 1, -1), (float("nan"), 1, 1, 0)):
        with pytest.raises(InvalidInputError):
            CodecRates(*arguments)
    for link_rate_bps in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidInputError, match="link rate"):
            choose(PUBLISHED, link_rate_bps, FRAME_BYTES)
    with pytest.raises(InvalidInputError, match="calibration"):
        calibrate(DType.FLOAT32, 0.0)
