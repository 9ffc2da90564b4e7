"""The speech model: its parts against plain definitions, and training on voices made up here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.voices import write_voices
from vqfast.data import Recordings, load_audio
from vqfast.models import DrawOptions, SpeechVQVAE, mu_law_decode, mu_law_encode
from vqfast.models.mu_law import mu_law_expand
from vqfast.models.speech_encoder import Normalised
from vqfast.priors import WaveNet
from vqfast.sampling import mixture, parallel

SMALL: dict[str, Any] = {
    "encoder_strides": (4, 2),
    "hidden_channels": 16,
    "num_residual_blocks": 1,
    "wavenet_channels": 8,
    "wavenet_layers": 4,
    "dilation_cycle": 3,
    "condition_channels": 6,
    "num_embeddings": 16,
    "embedding_dim": 8,
}


def speech(**options: Any) -> SpeechVQVAE:
    torch.manual_seed(0)
    return SpeechVQVAE(**{**SMALL, **options})


def waves(num: int, length: int) -> Tensor:
    return torch.rand(num, 1, length, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("num_values", [2, 7, 256, 1 << 16])
def test_mu_law_comes_back_to_within_half_a_step(num_values: int) -> None:
    values = torch.arange(num_values)
    assert torch.equal(
        mu_law_encode(mu_law_decode(values, num_values, dtype=torch.float64), num_values), values
    )
    x = torch.linspace(-1.5, 1.5, 5001, dtype=torch.float64)
    mu = num_values - 1
    squeezed = torch.sign(x) * torch.log(1 + mu * x.abs().clamp(max=1)) / math.log(1 + mu)
    again = mu_law_encode(x, num_values).double() * 2 / mu - 1
    assert (again - squeezed).abs().max() <= 1 / mu + 1e-12
    assert mu_law_encode(torch.zeros(1), num_values).item() == num_values // 2


def test_mu_law_refuses_what_it_cannot_take() -> None:
    with pytest.raises(TypeError, match="waves has dtype"):
        mu_law_encode(torch.arange(3))
    with pytest.raises(ValueError, match="num_values is 1"):
        mu_law_encode(torch.zeros(3), 1)
    with pytest.raises(ValueError, match="indices"):
        mu_law_decode(torch.tensor([256]))


@pytest.mark.parametrize("strides", [(2,) * 6, (2, 2, 2, 2, 2, 2, 2, 5), (5, 4, 2), (3,), (1, 2)])
@pytest.mark.parametrize("length", [1, 640, 1000])
def test_any_stride_and_any_length(strides: tuple[int, ...], length: int) -> None:
    model = speech(encoder_strides=strides).eval()
    stride = math.prod(strides)
    indices = model.encode(waves(2, length))
    assert model.stride == stride and model.code_shapes((length,)) == [(-(-length // stride),)]
    assert indices.shape == (2, -(-length // stride))
    assert model(waves(2, length)).reconstruction.shape == (2, 1, length)


def test_a_log_mel_spectrogram_rises_with_the_pitch() -> None:
    model = speech(encoder_strides=(160, 4), num_mels=40, rate=16000)
    tones = torch.stack([(torch.arange(16000) * 2 * math.pi * f / 16000).sin() for f in (200, 1000, 5000)])
    mels = model.encoder[0](tones.unsqueeze(1))
    assert mels.shape == (3, 40, 100) and mels.abs().max() < 4
    centres = 700 * (10 ** (torch.linspace(0, 2595 * math.log10(1 + 8000 / 700), 42)[1:-1] / 2595) - 1)
    expected = [int((centres - f).abs().argmin()) for f in (200, 1000, 5000)]
    assert mels[:, :, 50].argmax(1).tolist() == expected
    assert model.encode(tones.unsqueeze(1)).shape == (3, 25)


@torch.no_grad()
def test_a_condition_stride_repeats_the_map() -> None:
    torch.manual_seed(0)
    coarse = WaveNet(7, 6, 3, condition_channels=2, condition_stride=4, num_classes=2)
    fine = WaveNet(7, 6, 3, condition_channels=2, num_classes=2)
    fine.load_state_dict(coarse.state_dict())
    codes, condition, labels = torch.randint(7, (2, 10)), torch.randn(2, 2, 3), torch.tensor([1, 0])
    repeated = condition.repeat_interleave(4, 2)[..., :10]
    torch.testing.assert_close(coarse(codes, labels, condition), fine(codes, labels, repeated))
    drawn = fine.sample(2, (10,), labels=labels, condition=repeated, seed=3)
    for method in ("native", "torch", "reference"):
        assert torch.equal(
            coarse.sample(2, (10,), labels=labels, condition=condition, seed=3, method=method), drawn
        )
    with pytest.raises(ValueError, match=r"condition has shape \(2, 2, 10\); want \(2, 2, 3\)"):
        coarse(codes, labels, repeated)


@pytest.mark.parametrize("stride", [3, 7, 100, 1000])
@torch.no_grad()
def test_a_condition_is_read_at_its_own_rate_in_rows_of_several_blocks(stride: int) -> None:
    torch.manual_seed(0)
    coarse = WaveNet(5, 6, 4, condition_channels=3, condition_stride=stride, num_classes=2).double()
    fine = WaveNet(5, 6, 4, condition_channels=3, num_classes=2).double()
    fine.load_state_dict(coarse.state_dict())
    condition = torch.randn(3, 3, -(-600 // stride)).double()
    repeated = condition.repeat_interleave(stride, 2)[..., :600]
    given = {"labels": torch.tensor([1, 0, 1]), "seed": 5}
    expected = fine.sample(3, (600,), condition=repeated, method="torch", **given)
    for method in ("native", "torch"):
        assert torch.equal(coarse.sample(3, (600,), condition=condition, method=method, **given), expected)
    program, weights = coarse.lower()
    logits = parallel.logits(program, weights, expected[:, None], given["labels"], condition.unsqueeze(2))
    torch.testing.assert_close(logits.squeeze(2), fine(expected, given["labels"], repeated))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"encoder_strides": (2, 2, 2), "num_residual_blocks": 3},
        {"encoder_strides": (1, 1, 3)},
        {"encoder_strides": (5,), "num_mixtures": 2},
        {"encoder_strides": (8, 2), "num_mels": 6},
    ],
    ids=str,
)
def test_long_waveforms_are_taken_in_pieces(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = speech(**options).double().eval()
    x, lengths = waves(2, 1000).double(), torch.tensor([1000, 510])
    out, nats = model(x, lengths=lengths, return_nats=True)
    monkeypatch.setattr("vqfast.models.speech.PIECE", 160)
    assert torch.equal(model.encode(x, lengths=lengths), out.indices)
    torch.testing.assert_close(model.nats(x, out.indices, lengths=lengths), nats)


@torch.no_grad()
def test_samples_of_mixtures_have_their_likelihood_and_mean() -> None:
    """The probabilities of all values add up to 1, and their mean in mu-law is the reconstruction."""
    model = speech(num_mixtures=3, num_values=40).double().eval()
    assert SpeechVQVAE(**model.config).config == model.config
    x = waves(1, 32).double()
    out = model(x)
    logits = model.wavenet(mu_law_encode(x[:, 0], 40), None, model.conditioner(model.vq.decode(out.indices)))
    values = torch.arange(40).view(-1, 1).expand(40, 32)
    p = (-mixture.nats(logits.expand(40, -1, -1), values, 40, several=False)).exp()
    torch.testing.assert_close(p.sum(0), torch.ones(32).double())
    squeezed = logits[0, :3].softmax(0) * logits[0, 3:6].clamp(-1, 1)
    torch.testing.assert_close(
        out.reconstruction[0, 0], mu_law_expand(squeezed.sum(0), 40), rtol=0, atol=1e-12
    )
    expected = model.decode(out.indices, method="reference", seed=3)
    for method in ("native", "torch"):
        assert torch.equal(model.decode(out.indices, method=method, seed=3), expected)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("batches", [1, 5, 200])
@torch.no_grad()
def test_vectors_have_the_same_scale_while_and_after_they_are_learned(scale: float, batches: int) -> None:
    """However small the encoder's output is and however few batches were seen, codes stay apart."""
    torch.manual_seed(0)
    layer = Normalised(3)
    x = scale * torch.randn(8, 3, 500) * torch.tensor([1.0, 2.0, 0.5])[:, None] + 3 * scale
    assert torch.equal(layer.eval()(x), x)
    layer.train()
    for _ in range(batches):
        learned = layer(x)
    assert torch.allclose(learned.std((0, 2)), torch.ones(3), atol=0.01)
    torch.testing.assert_close(layer.eval()(x), learned, rtol=1e-2, atol=1e-3)


def test_gradients_reach_the_encoder_through_the_codes() -> None:
    model = speech(num_classes=3).double()
    out, nats = model(waves(2, 64).double(), labels=torch.tensor([0, 2]), return_nats=True)
    (nats.mean() + out.loss).backward()
    for part in (model.encoder, model.conditioner):
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_nats_are_those_of_the_wavenet() -> None:
    model = speech(num_classes=2).eval()
    x, labels = waves(2, 50), torch.tensor([1, 0])
    out, nats = model(x, labels=labels, return_nats=True)
    indices = model.encode(x)
    assert torch.equal(indices, out.indices)
    condition = model.conditioner(model.vq.decode(indices))
    values = mu_law_encode(x[:, 0])
    expected = model.wavenet.bits_per_code(values, labels, condition) * 50 * math.log(2)
    torch.testing.assert_close(nats, expected)
    torch.testing.assert_close(model.nats(x, indices, labels=labels), expected)
    logits = model.wavenet(values, labels, condition)
    mean = (logits.softmax(1) * mu_law_decode(torch.arange(256))[:, None]).sum(1, keepdim=True)
    torch.testing.assert_close(out.reconstruction, mean)


@torch.no_grad()
def test_padding_counts_for_nothing() -> None:
    model = speech().eval()
    x, lengths = waves(3, 64), torch.tensor([64, 21, 8])
    for i, length in enumerate(lengths.tolist()):
        x[i, :, length:] = 0
    indices = model.encode(x, lengths=lengths)
    assert (indices >= 0).sum(1).tolist() == [8, 3, 1]
    nats = model(x, lengths=lengths, return_nats=True)[1]
    logits = model.wavenet(mu_law_encode(x[:, 0]), None, model.conditioner(model.vq.decode(indices)))
    each = F.cross_entropy(logits, mu_law_encode(x[:, 0]), reduction="none")
    expected = torch.stack([row[:length].sum() for row, length in zip(each, lengths.tolist(), strict=True)])
    torch.testing.assert_close(nats, expected)
    assert not model.decode(indices)[1, 0, 24:].any()


@torch.no_grad()
@pytest.mark.parametrize("method", ["native", "torch", "reference"])
def test_decoding_is_the_same_however_it_is_done(method: str) -> None:
    model = speech(num_classes=2).double().eval()
    indices, labels = torch.randint(16, (3, 4)), torch.tensor([0, 1, 1])
    drawn = model.decode(indices, labels=labels, seed=5)
    assert drawn.shape == (3, 1, 32) and drawn.abs().max() <= 1
    assert torch.equal(model.decode(indices, labels=labels, seed=5, method=method), drawn)
    alone = model.decode(indices[2:], labels=1, seed=5, numbers=torch.tensor([2]), method=method)
    assert torch.equal(alone[0], drawn[2])
    assert not torch.equal(model.decode(indices, labels=labels, seed=6), drawn)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_mixtures": 3}], ids=str)
def test_long_waveforms_are_drawn_in_pieces(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece has what one sampling of all has, given the samples before: here of the most likely ones."""
    model = speech(num_classes=2, **options).double().eval()
    indices = torch.randint(16, (3, 20))
    indices[1, 13:] = -1
    given: DrawOptions = {"labels": torch.tensor([0, 1, 1]), "seed": 5, "numbers": torch.tensor([4, 0, 7])}
    whole = {t: model.decode(indices, temperature=t, **given) for t in (0.0, 1.0)}
    drawn, sample = [], model.wavenet.sample

    def watched(num: int, shape: tuple[int, ...], **options: Any) -> Tensor:
        drawn.append(shape[0])
        return sample(num, shape, **options)

    monkeypatch.setattr(model.wavenet, "sample", watched)
    monkeypatch.setattr("vqfast.models.speech_drawing.SAMPLES", 4 * 8)
    before, ticks = -(-model.wavenet.reach // 8), list[int]()
    pieces = list(model.decode_pieces(indices, temperature=0.0, **given, progress=ticks.append))
    assert torch.equal(torch.cat(pieces, 2), whole[0.0])
    assert drawn == [32, *[(4 + before) * 8] * 4]
    assert sum(ticks) == 3 * 160 and min(ticks) >= 0
    expected = model.decode(indices, **given)
    assert torch.equal(expected[..., :32], whole[1.0][..., :32])
    for method in ("native", "torch", "reference"):
        assert torch.equal(model.decode(indices, method=method, **given), expected)
    alone = model.decode(indices[2:], labels=1, seed=5, numbers=torch.tensor([7]))
    assert torch.equal(alone[0], expected[2])
    values = mu_law_encode(expected)[0].view(20, 8)
    assert len({tuple(row) for row in values.tolist()}) == 20  # no piece has the noise of another
    with pytest.raises(ValueError, match="indices"):
        model.decode_pieces(indices + 16)


@torch.no_grad()
def test_values_start_in_their_order() -> None:
    """A WaveNet sees at once that 100 and 101 are alike: of random vectors no two are."""
    near = speech().wavenet.embedding.weight
    distances = torch.cdist(near, near)
    assert distances[100, 101] < 0.2 * distances[100, 200]
    order = near @ (near[-1] - near[0])
    assert torch.corrcoef(torch.stack([order, torch.arange(256.0)]))[0, 1] > 0.99


@torch.no_grad()
def test_quiet_waveforms_are_heard_too() -> None:
    """At a hundredth of the loudness samples still move the first layer, which sees them in mu-law."""
    first = speech().encoder[0]
    loud, quiet = first(waves(1, 64)), first(waves(1, 64) / 100)
    assert quiet.std() > 0.1 * loud.std() and first(torch.zeros(1, 1, 4)).abs().max() == 0
    squeezed = mu_law_encode(waves(1, 64)).double() / 127.5 - 1
    assert (loud - squeezed).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.slow
def test_the_papers_model_learns_codes_from_samples_alone(tmp_path: Path) -> None:
    """No spectrogram helps: more and more codes are in use, and without them samples take more bits.

    Without the cures, ten layers of 32 channels had a perplexity of 1.2 after 160 steps at 1e-3, and the
    order of their codes told nothing: 5.26 bits a sample, 5.26 with shuffled codes.
    """
    pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    torch.manual_seed(0)
    write_voices(tmp_path / "voices", recordings=16, vowels=10)
    train, held_out = load_audio(tmp_path / "voices").split(0.25, seed=0)
    sizes: dict[str, Any] = {"hidden_channels": 64, "num_residual_blocks": 1, "condition_channels": 32}
    sizes |= {"wavenet_channels": 24, "wavenet_layers": 6, "num_embeddings": 64, "embedding_dim": 16}
    model = SpeechVQVAE.named("paper-speech", rate=train.rate, num_classes=2, **sizes)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    rng, found = np.random.default_rng(0), []
    for step in range(1, 151):
        numbers = torch.from_numpy(rng.integers(len(train), size=6))
        x = train.crops(numbers, 512, torch.from_numpy(rng.random(6)))
        out, nats = model(x, labels=torch.from_numpy(train.labels)[numbers], return_nats=True)
        optimizer.zero_grad()
        (nats.sum() / x.numel() + out.loss).backward()
        optimizer.step()
        if step in (15, 150):
            found.append(told_by_codes(model.eval(), held_out))
            model.train()
    (early, _, _), (late, with_codes, shuffled) = found
    assert late > 10 and late > 1.5 * early, (early, late)
    assert with_codes < 4 and with_codes < shuffled - 0.05, (with_codes, shuffled)


@torch.no_grad()
def told_by_codes(model: SpeechVQVAE, recordings: Recordings) -> tuple[float, float, float]:
    """Perplexity of the codes, and bits a sample with them and with the same in another order."""
    assert recordings.labels is not None
    codes, nats, samples = [], [0.0, 0.0], 0
    for number, label in enumerate(recordings.labels.tolist()):
        x = recordings.recording(number)
        indices = model.encode(x)
        other = indices[:, torch.from_numpy(np.random.default_rng(number).permutation(indices.shape[1]))]
        for i, shown in enumerate((indices, other)):
            nats[i] += model.nats(x, shown, labels=label).item()
        codes.append(indices.flatten())
        samples += x.shape[2]
    shares = torch.cat(codes).bincount() / sum(map(len, codes))
    bits = [total / samples / math.log(2) for total in nats]
    return torch.special.entr(shares).sum().exp().item(), bits[0], bits[1]


def test_config_is_json_and_makes_the_same_model() -> None:
    model = speech(num_classes=3, decay=0.9, num_mels=8, mel_weight=2.0, rate=8000).eval()
    again = SpeechVQVAE(**json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    x = waves(2, 40)
    assert torch.equal(again.encode(x), model.encode(x))


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"encoder_strides": 64}, TypeError, "encoder_strides is 64; want a sequence of integers"),
        ({"encoder_strides": ()}, TypeError, "encoder_strides"),
        ({"encoder_strides": (2, 0)}, ValueError, "encoder_strides is 0"),
        ({"num_values": 1}, ValueError, "num_values is 1"),
        ({"num_classes": 0}, ValueError, "num_classes is 0"),
        ({"rate": 1.5}, TypeError, "rate is 1.5"),
        ({"mel_weight": 1.0}, ValueError, "mel_weight is 1.0; want 0 without num_mels"),
        ({"smell": 1}, TypeError, "smell"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        speech(**options)


def test_wrong_inputs_are_refused() -> None:
    model = speech(num_classes=2)
    with pytest.raises(ValueError, match="labels is None"):
        model(waves(2, 8))
    with pytest.raises(ValueError, match="x has shape"):
        model.encode(torch.zeros(1, 2, 8))
    with pytest.raises(ValueError, match="lengths has shape"):
        model.encode(waves(2, 8), lengths=torch.tensor([1]))
    with pytest.raises(ValueError, match=r"indices has shape \(2, 0\)"):
        model.decode(torch.zeros(2, 0, dtype=torch.int64), labels=0)
