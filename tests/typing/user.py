"""A user's program before type checkers: it uses every public name and says the type of each result."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import vqfast
from vqfast import data, functional, models, pipeline, priors, sampling

z_e = torch.randn(2, 8, 4, 4)
mask = torch.ones(2, 4, 4, dtype=torch.bool)


def layers() -> None:
    """The layers, their results, and states from other libraries."""
    layer = vqfast.VQLayer(32, 8, decay=0.99, metric="cosine", kmeans_init=True, revive_below=0.5)
    output = assert_type(layer(z_e), vqfast.VQOutput)
    assert_type(layer(z_e, mask, return_parts=False), vqfast.VQOutput)
    output, parts = assert_type(layer(z_e, return_parts=True), tuple[vqfast.VQOutput, vqfast.LossParts])
    quantized, indices, loss = output
    assert_type(quantized + loss + parts.commitment + parts.codebook, Tensor)
    assert_type(layer.decode(assert_type(layer.encode(z_e), Tensor)), Tensor)
    assert_type(layer.codebook, Tensor)
    assert_type(layer.perplexity(indices), Tensor)
    layer.set_codebook(torch.randn(32, 8))
    layer.reset_parameters()
    layer.freeze()

    residual = vqfast.ResidualVQLayer(32, 8, 3, quantize_dropout=True, beta=0.5, device="cpu")
    assert_type(residual(z_e), vqfast.VQOutput)
    assert_type(residual(z_e, return_parts=True)[1], vqfast.LossParts)
    assert_type(residual.decode(residual.encode(z_e)), Tensor)
    residual.set_codebooks(assert_type(residual.codebooks, Tensor))

    assert_type(vqfast.MaskedConv1d(8, 8, 3, mask_type="A")(z_e[:, :, 0]), Tensor)
    assert_type(vqfast.MaskedConv2d(8, 8, 3, mask_type="A", stack="full")(z_e), Tensor)

    state = {"quantize.embedding.weight": torch.randn(32, 8)}
    converted = vqfast.convert_state_dict(state, layer, prefix="quantize.")
    layer.load_state_dict(assert_type(converted, dict[str, Tensor]))


def functions() -> None:
    """``vqfast.functional``, also as ``vqfast.functional``."""
    x, codebook = torch.randn(5, 8), torch.randn(32, 8)
    indices = assert_type(vqfast.functional.nearest_code(x, codebook), Tensor)
    assert_type(functional.nearest_code(x, codebook, return_distances=True), tuple[Tensor, Tensor])
    assert_type(functional.nearest_unit_code(x, codebook), Tensor)
    assert_type(functional.unit(x), Tensor)
    quantized = assert_type(functional.quantize(z_e, codebook, return_statistics=True), vqfast.Quantized)
    assert_type(quantized.counts, Tensor)
    codebooks = codebook.expand(3, -1, -1)
    assert_type(functional.residual_quantize(z_e, codebooks), functional.Quantized)
    assert_type(functional.residual_codes(z_e, [codebook, codebook]), Tensor)
    maps = [[torch.randn(8, 4), torch.randn(8), torch.randn(4, 8), torch.randn(4)]]
    audio = torch.randn(2, 4, 9)
    assert_type(functional.projected_codes(audio, [codebook], maps), Tensor)
    assert_type(
        functional.projected_codes(audio, [codebook], maps, return_parts=True), tuple[Tensor, Tensor, Tensor]
    )
    assert_type(functional.perplexity(indices, 32), Tensor)
    assert_type(functional.ssim(z_e, z_e), Tensor)
    kernel = assert_type(functional.kernel_shape(3, "A", "full"), tuple[int, int])
    assert_type(functional.visible_taps(kernel, "A", "full"), tuple[int, tuple[int, int]])
    assert_type(functional.masked_conv1d(audio, torch.randn(8, 4, 2)), Tensor)
    assert_type(functional.masked_conv2d(z_e, torch.randn(8, 8, *kernel)), Tensor)
    assert_type(functional.gate(z_e), Tensor)


def autoencoders() -> None:
    """The model of the package, and models of runs."""
    x = torch.randn(1, 3, 16, 16)
    model = vqfast.VQVAE(hidden_channels=16)
    reconstruction = assert_type(model(x), vqfast.VQVAEOutput)
    assert_type(reconstruction.loss, Tensor)
    assert_type(model.decode(assert_type(model.encode(x), Tensor)), Tensor)
    assert_type(model.code_shape((16, 16)), tuple[int, ...])
    named = assert_type(models.VQVAE.named(next(iter(models.CONFIGS)), decay=0.9), models.VQVAE)
    options: models.LayerOptions = {"decay": 0.99, "kmeans_init": True}
    vqfast.VQVAE(hidden_channels=16, **options)
    vqfast.VQVAE(quantizer=vqfast.ResidualVQLayer(32, 8, 3), loss_weight=0.1)
    likely = vqfast.VQVAE(hidden_channels=16, num_mixtures=5)
    assert_type(likely(x, return_nats=True), tuple[vqfast.VQVAEOutput, Tensor])
    assert_type(likely.bits_per_dim(x, code_bits=torch.zeros(1)), Tensor)
    parameters = torch.zeros(1, models.mixture_channels(3, 5), 16, 16)
    assert_type(models.logistic_mixture_nats(parameters, x, num_values=256), Tensor)
    assert_type(models.logistic_mixture_mean(parameters, 3), Tensor)
    hierarchy = assert_type(
        vqfast.HierarchicalVQVAE.named("vqvae2", hidden_channels=16), vqfast.HierarchicalVQVAE
    )
    out = assert_type(hierarchy(x), vqfast.HierarchicalOutput)
    assert_type(hierarchy.decode(assert_type(hierarchy.encode(x), list[Tensor])[:1]), Tensor)
    assert_type(out.indices, list[Tensor])
    hierarchy = vqfast.HierarchicalVQVAE.named("ruseckas-hierarchical", hidden_channels=32, image_size=32)
    assert_type(hierarchy.sample(2, temperature=0.9, seed=1), list[Tensor])
    level: models.Autoencoder = named
    assert_type(level.decode_levels(assert_type(level.encode_levels(x), list[Tensor])), Tensor)
    assert_type(level.code_shapes((16, 16)), list[tuple[int, ...]])
    assert_type(vqfast.load_model("run", "vqvae"), models.Autoencoder)
    speech = models.SpeechVQVAE(hidden_channels=16, num_classes=2)
    waves = torch.zeros(2, 1, 640)
    assert_type(speech.decode(assert_type(speech.encode(waves), Tensor), labels=1, seed=1), Tensor)
    draw: models.DrawOptions = {"seed": 1, "temperature": 0.9}
    assert_type(speech.decode_pieces(torch.zeros(1, 2, dtype=torch.int64), **draw), Iterator[Tensor])
    assert_type(models.mu_law_decode(assert_type(models.mu_law_encode(waves), Tensor)), Tensor)
    assert_type(vqfast.load_model(Path("run"), "prior"), priors.CausalPrior)


class Network(nn.Module):
    """A causal network of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 8)
        self.conv = vqfast.MaskedConv2d(8, 32, 3, mask_type="A")

    def forward(self, indices: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)``."""
        return self.conv(self.embedding(indices).movedim(-1, 1))


def own_prior() -> priors.CausalPrior:
    """That network as a prior."""
    return priors.program_of(Network(), 32, (4, 4))


def samples() -> Iterator[Tensor]:
    """Priors, their samples, and what they lower to."""
    prior = vqfast.PixelCNN(32, num_classes=10)
    indices = assert_type(
        prior.sample(4, (4, 4), labels=torch.arange(4), temperature=0.9, top_k=5, seed=1), Tensor
    )
    assert_type(prior(indices, labels=3), Tensor)
    assert_type(prior.bits_per_code(indices, labels=3), Tensor)
    vqfast.WaveNet(32).sample(1, (64,))
    prior.save_pretrained("folder", overwrite=True)
    assert_type(vqfast.PixelCNN.from_pretrained("folder"), vqfast.PixelCNN)
    assert_type(priors.ProgramPrior.from_pretrained("folder", device="cpu"), priors.ProgramPrior)
    vqfast.ResidualPixelCNN(32).sample(1, (4, 4), precision="bfloat16")
    assert_type(vqfast.PixelSNAIL(32, num_heads=2).sample(1, (4, 4)), Tensor)
    program, weights = assert_type(prior.lower(), tuple[sampling.Program, dict[str, Tensor]])
    assert_type(weights, dict[str, Tensor])
    step = program.steps[0]
    assert_type(step, sampling.Step | sampling.Attention)
    if isinstance(step, sampling.Step):
        assert_type(step.terms[0], sampling.Term)
    assert_type(max(sampling.Phase), sampling.Phase)
    builder = sampling.ProgramBuilder()
    assert_type(builder.dense(sampling.CODES, torch.randn(8, 32)), sampling.Term)
    assert_type(builder.dense(sampling.CONDITION, torch.randn(8, 32)), sampling.Term)
    assert_type(builder.dense(sampling.codes_of(1), torch.randn(8, 32)), sampling.Term)
    residual = vqfast.PixelCNN(32, channels=8, num_layers=2, num_quantizers=4)
    assert_type(residual.sample(2, (4, 4)), Tensor)
    network = vqfast.program_of(Network(), 32, (4, 4))
    yield from network.sample_batches(10**6, (4, 4), labels=None)


class Autoencoder(nn.Module):
    """A model of one's own with a layer of vqfast."""

    def __init__(self) -> None:
        super().__init__()
        self.vq = vqfast.VQLayer(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` quantised."""
        return self.vq(x).quantized


def acceleration() -> None:
    """A model of another library."""
    report = assert_type(vqfast.accelerate(Autoencoder()), vqfast.Report)
    assert_type([entry.path for entry in report.accelerated + report.left_alone], list[str])
    assert_type(report.priors, list[str])
    vqfast.accelerate(Autoencoder(), restore=True)
    assert_type(vqfast.accelerate.patch("vector_quantize_pytorch"), list[str])
    vqfast.accelerate.patch("vector_quantize_pytorch", restore=True)


def new_images(folder: Path) -> None:
    """The pipeline, from a folder of images to new images."""
    images = assert_type(data.load_images(folder, size=32), data.Images)
    dataset: data.Dataset = images
    source: data.Source = images
    try:
        assert_type(dataset.batch([0, 1]), Tensor)
    except data.Unreadable as error:
        print(error, source.describe())
    modality = assert_type(data.MODALITIES["images"], data.Modality)

    with pipeline.joined("cpu") as ranks:
        assert_type(ranks, pipeline.Ranks)
        run = pipeline.Run("run", create=True)
        vqvae = assert_type(
            pipeline.train_vqvae(run, folder, training=pipeline.Training(steps=100), ranks=ranks),
            models.Autoencoder,
        )
        parts = pipeline.reopen_parts(run)
        assert_type(pipeline.measure_reconstruction(vqvae, parts["train"]), dict[str, float])
        if isinstance(vqvae, vqfast.VQVAE):
            assert_type(pipeline.bits_per_dim(vqvae, parts["train"]), Tensor)
        pipeline.encode(run, vqvae, parts["train"], part="train")
        trained = pipeline.train_priors(run, training=pipeline.PriorTraining(steps=100))
        assert_type(trained, list[priors.CausalPrior | priors.ConditionedPrior | priors.ClipPrior])
        assert_type(pipeline.load_priors(run, vqvae)[0].num_embeddings, int)
        codes = assert_type(pipeline.stage_codes(run, "codes/train"), pipeline.CodeGrids)
        assert_type(pipeline.bits_per_code(trained, codes, labels=3), Tensor)
        pipeline.sample(run, trained, pipeline.SampleRequest(16, [(8, 8)], labels=3), seed=1)
        pipeline.decode(run, vqvae, pipeline.open_codes("run/samples"), format="npy")

        kind = assert_type(pipeline.modality_of(run), data.Modality)
        completion = pipeline.Completion(vqvae, images, kind, keep="top", draws=2)
        assert_type(completion.request(trained), pipeline.SampleRequest)
        assert_type(pipeline.train_classifier(run), models.Classifier)
        speech, recordings = models.SpeechVQVAE(), data.load_audio("folder")
        assert_type(pipeline.phone_table(speech, recordings, "labels"), pipeline.PhoneTable)
        rejection = pipeline.Rejection.of_run(run, vqvae, 0.9)
        kept = pipeline.SampleRequest(16, [(8, 8)])
        assert_type(pipeline.sample(run, trained, kept, reject=rejection), pipeline.CodeGrids)
        assert_type(pipeline.num_rejected(run), int)
        second = pipeline.Run("second", create=True)
        assert_type(pipeline.train_second_stage(second, run), models.SecondStage)
        hierarchy = models.HierarchicalVQVAE("ruseckas-hierarchical")
        assert_type(models.LevelPrior(hierarchy, 0).sample(4, (4, 4)), Tensor)
        pipeline.save_model("elsewhere", "prior", trained[0])
        assert_type(pipeline.report(run, run, ranks=ranks), bytes)
        assert_type(pipeline.load_model("elsewhere", "prior"), priors.CausalPrior)
        assert modality is kind


def new_clips(folder: Path) -> None:
    """Video, from a folder of clips to clips that go on by an action."""
    clips = assert_type(data.load_video(folder, frames=16), data.Clips)
    run, training = pipeline.Run("video", create=True), pipeline.VideoTraining(steps=10)
    vqvae = pipeline.train_vqvae(run, folder, modality="video", model="paper-video", training=training)
    kind = pipeline.modality_of(run)
    more = pipeline.Continuation(vqvae, clips, kind, given=6, actions="1")
    assert_type(more.request([priors.ClipPrior(16, num_actions=3)]), pipeline.SampleRequest)


def new_recordings(folder: Path) -> None:
    """Speech, from a folder of recordings to voices converted."""
    recordings = assert_type(data.load_audio(folder, rate=16_000), data.Recordings)
    run, out = pipeline.Run("speech", create=True), pipeline.Run("converted", create=True)
    vqvae = assert_type(pipeline.train_speech(run, folder), models.SpeechVQVAE)
    assert_type(pipeline.measure_speech(vqvae, recordings), dict[str, float])
    pipeline.convert(run, vqvae, recordings, speaker="anna", out=out)
