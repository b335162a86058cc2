"""The model of both towers: classifiers and scales of its branches, classes kept alone, text that it follows, seeds."""

from __future__ import annotations

import pytest
import torch

from manifests.config import parse_changes
from training.models.cross_modal import CrossModalModel
from training.settings.fit_recipe import read_recipe
from training.weights.checkpoint import build_model

FEW = ("points.depth=1", "points.drop_path=0.4", "data.num_points=64", "optimizer.batch_size=4")
NAMES = ("mug", "bowl", "chair", "table")


def model_of(*changes: str, recipe: str = "small_cross_most") -> CrossModalModel:
    return build_model(read_recipe(recipe, parse_changes((*FEW, *changes))), NAMES)[0]


def unit(size: int, width: int) -> torch.Tensor:
    values = torch.randn(size, width, generator=torch.Generator().manual_seed(5))
    return torch.nn.functional.normalize(values, dim=1)


def apart() -> CrossModalModel:
    """Two classifiers and two scales, all different."""
    model, g = model_of("classifier=own"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.classifier.copy_(torch.randn(model.classifier.shape, generator=g))
        model.points_classifier.copy_(torch.randn(model.classifier.shape, generator=g))
        model.logit_scale.fill_(1.0)
        model.points_logit_scale.fill_(2.0)
    return model


def test_branches_with_classifiers_of_their_own_answer_by_them() -> None:
    model, feature = apart(), unit(5, 128)
    e = torch.e
    torch.testing.assert_close(model.image_logits(feature), e * feature @ model.classifier)
    torch.testing.assert_close(model.points_logits(feature), e * e * feature @ model.points_classifier)
    shared = model_of()
    torch.testing.assert_close(shared.points_logits(feature), shared.image_logits(feature))


def test_answers_among_some_classes_are_those_columns_of_each_branch() -> None:
    model, feature = apart(), unit(5, 128)
    image, points = model.image_logits(feature), model.points_logits(feature)
    model.keep_classes([3, 1])
    torch.testing.assert_close(model.image_logits(feature), image[:, [3, 1]])
    torch.testing.assert_close(model.points_logits(feature), points[:, [3, 1]])


def test_the_classifier_follows_the_text_tower() -> None:
    """After the text tower has learnt something, as a checkpoint keeps it."""
    model = model_of(recipe="small_pretrain")
    before = model.classifier.detach().clone()
    with torch.no_grad():
        model.text.clip.text_projection.copy_(torch.flip(model.text.clip.text_projection, (1,)))
    model.refresh_classifier()
    torch.testing.assert_close(model.classifier.detach(), before.flip(0))
    plain = model_of()
    same = plain.classifier.detach().clone()
    plain.refresh_classifier()
    assert torch.equal(plain.classifier, same)


def test_features_are_of_length_one() -> None:
    model = model_of().eval()
    pictures, clouds = torch.rand(3, 3, 48, 48), torch.rand(3, 64, 3)
    with torch.no_grad():
        for feature in (model.image_features(pictures), model.point_features(clouds)):
            torch.testing.assert_close(feature.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("learns", ["frozen", "projection"])
def test_a_frozen_tower_rests_and_is_not_trained(learns: str) -> None:
    keys = (f"pretrain.image={learns}", f"pretrain.text={learns}", "init.image=x")
    recipe = read_recipe("small_pretrain", parse_changes((*FEW, *keys)))
    recipe = recipe.model_copy(update={"init": type(recipe.init)()})
    model = build_model(recipe, NAMES)[0].train()
    for tower, projection in ((model.image, "visual.proj"), (model.text, "clip.text_projection")):
        trained = [name for name, p in tower.named_parameters() if p.requires_grad]
        assert trained == ([projection] if learns == "projection" else [])
        assert tower.training is (learns == "projection")
    assert model.points.training


def test_a_seed_gives_its_own_weights_and_changes_no_other_draw() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = (model_of(f"seed={seed}") for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    for name in ("image.visual.proj", "points.projection", "image.mask_token"):
        assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
