"""Video frame by frame against the model of images with the same weights."""

from __future__ import annotations

import pytest
import torch

from vqfast.models import VQVAE


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["paper", "keras", "ruseckas"])
def test_each_frame_is_an_image(architecture: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_channels": 32, "num_downsamplings": 2, "num_embeddings": 16}
    model = VQVAE(architecture, ndim=3, frame_by_frame=True, **sizes).eval()
    images = VQVAE(architecture, **sizes).eval()
    state = {name.replace(".images.", "."): value for name, value in model.state_dict().items()}
    images.load_state_dict(state)
    x = torch.rand(2, 3, 5, 8, 12)
    out = model(x)
    assert out.indices.shape == (2, 5, 2, 3) == (2, *model.code_shape((5, 8, 12)))
    for t in range(5):
        alone = images(x[:, :, t])
        assert torch.equal(out.indices[:, t], alone.indices)
        torch.testing.assert_close(out.reconstruction[:, :, t], alone.reconstruction)
        assert torch.equal(model.encode(x[:, :, t : t + 1])[:, 0], alone.indices)
        torch.testing.assert_close(model.decode(out.indices)[:, :, t], images.decode(alone.indices))


def test_a_model_from_before_frame_by_frame_halves_time() -> None:
    model = VQVAE.named("paper-video-halved", hidden_channels=8)
    config = {name: value for name, value in model.config.items() if name != "frame_by_frame"}
    again = VQVAE(**config)
    again.load_state_dict(model.state_dict())
    assert again.code_shape((8, 8, 12)) == (2, 2, 3)


def test_what_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="frame_by_frame is True; want False with ndim 2"):
        VQVAE(frame_by_frame=True)
    with pytest.raises(TypeError, match="frame_by_frame is 1"):
        VQVAE(ndim=3, frame_by_frame=1)  # type: ignore[arg-type]
    model = VQVAE.named("paper-video", hidden_channels=8)
    for shape in ((0, 8, 8), (3, 8, 6), (3, 8)):
        with pytest.raises(ValueError, match=r"a positive number of frames and 2 positive multiples of .* 4"):
            model.code_shape(shape)
