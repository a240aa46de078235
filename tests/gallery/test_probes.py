"""gallery/probes.py: the linear classifier, its features and shares."""
import torch

from gallery import probes
from gallery.scenes import random_scenes


def test_a_classifier_reads_from_all_queries_what_their_mean_lacks():
    scenes = random_scenes(200, 0)
    labels = probes.labels_of(scenes, "cpu")
    torch.manual_seed(0)
    queries = 0.1 * torch.randn(200, 2, 40)
    place = 0
    for attribute, values in probes.READ.items():
        for number in range(len(values)):                     # the two queries cancel out
            shows = (labels[attribute] == number).float()
            queries[:, 0, place] += shows
            queries[:, 1, place] -= shows
            place += 1
    found = {}
    for name, take in probes.FEATURES.items():
        read = probes.classifier(take(queries[:100]), probes.labels_of(scenes[:100], "cpu"))
        found[name] = probes.rightly(read(take(queries[100:])),
                                     probes.labels_of(scenes[100:], "cpu"))
    assert min(found["all queries"].values()) > 0.9
    assert max(found["their mean"].values()) < 0.6


def test_the_share_that_is_right_is_counted_by_attribute():
    labels = {attribute: torch.tensor([0, 1]) for attribute in probes.READ}
    logits = {attribute: torch.tensor([[2.0, 1], [2, 1]]) for attribute in probes.READ}
    logits["style"] = torch.tensor([[2.0, 1], [1, 2]])
    assert probes.rightly(logits, labels) == {"subject": 0.5, "style": 1, "palette": 0.5,
                                              "composition": 0.5}
