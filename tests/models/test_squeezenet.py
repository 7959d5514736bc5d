"""SqueezeNet 1.1 as a backbone."""

from __future__ import annotations

import torch
from torchvision.models import squeezenet1_1

from coterie.models.squeezenet import NUM_FEATURES, SqueezeNetBackbone


def test_features_are_those_of_torchvision_averaged_over_positions() -> None:
    backbone, reference = SqueezeNetBackbone().eval(), squeezenet1_1().eval()
    missing, unexpected = reference.load_state_dict(backbone.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith("classifier.") for key in missing)
    images = torch.randn(2, 3, 64, 48)
    features = backbone(images)
    assert features.shape == (2, NUM_FEATURES)
    torch.testing.assert_close(features, reference.features(images).mean(dim=(2, 3)))
