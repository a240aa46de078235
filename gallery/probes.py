"""What a linear classifier reads from the query outputs of a vision side; see cures.py."""
import torch
import torch.nn.functional as F

from gallery.album import painted
from gallery.scenes import COMPOSITIONS, PALETTES, STYLES, SUBJECTS, random_scenes
from gallery.score import PAIRS, held_out, mean_cosine, pixels_of

READ = {"subject": SUBJECTS, "style": STYLES, "palette": tuple(PALETTES),
        "composition": COMPOSITIONS}
PENALTY = 1e-3                  # of the squared weights of a classifier


def all_queries(queries):       # (N, Q, D) -> (N, Q * D)
    return queries.flatten(1)


def their_mean(queries):        # (N, Q, D) -> (N, D)
    return queries.mean(dim=1)


FEATURES = {"all queries": all_queries, "their mean": their_mean}


@torch.no_grad()
def seen(models, scenes, device):
    """{name of a model: the queries (N, Q, D)} of the paintings of scenes. models: by name."""
    queries = {name: [] for name in models}
    for pixels in pixels_of(next(iter(models.values())), painted(scenes)):
        pixels = pixels.to(device)
        for name, model in models.items():
            queries[name].append(model.qformer(model.ln_vision(model.vit(pixels))))
    return {name: torch.cat(parts) for name, parts in queries.items()}


def labels_of(scenes, device):
    """{attribute of READ: the numbers of its values (N,)}"""
    return {attribute: torch.tensor([values.index(getattr(scene, attribute)) for scene in scenes],
                            device=device)
            for attribute, values in READ.items()}


def classifier(features, labels):
    """Logistic regression for all attributes of READ, on standardised features.

    features (N, F), labels of labels_of -> a function: features (M, F) -> {attribute: logits}.
    """
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    sizes = [len(values) for values in READ.values()]
    weight, bias = (torch.zeros(*shape, device=features.device, requires_grad=True)
                    for shape in ((features.shape[1], sum(sizes)), (sum(sizes),)))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def scores(standardised):
        parts = (standardised @ weight + bias).split(sizes, dim=1)
        return dict(zip(READ, parts, strict=True))

    learned_from = (features - mean) / deviation

    def loss_now():
        optimizer.zero_grad()
        loss = PENALTY * weight.square().sum()
        for attribute, logits in scores(learned_from).items():
            loss = loss + F.cross_entropy(logits, labels[attribute])
        loss.backward()
        return loss

    optimizer.step(loss_now)
    return lambda others: scores((others - mean) / deviation)


def measured(models, paintings, pictures, device):
    """What the vision sides of models, by name, see in `pictures` held-out paintings of each kind.

    paintings: so many the classifiers learn from. Returns
    {name: {"cosine": {pairs: mean cosine of two queries of a painting},
            "read": {of FEATURES: {pairs: {attribute: share that is right}}}}}.
    """
    learned_from = random_scenes(paintings, "training")
    labels, queries = labels_of(learned_from, device), seen(models, learned_from, device)
    held = {pairs: held_out(row, pictures) for pairs, row in PAIRS.items()}
    held_queries = {pairs: seen(models, scenes, device) for pairs, scenes in held.items()}
    truths = {pairs: labels_of(scenes, device) for pairs, scenes in held.items()}
    found = {}
    for name in models:
        cosine = {pairs: mean_cosine(held_queries[pairs][name]) for pairs in held}
        found[name] = {"cosine": cosine, "read": {}}
        for of, take in FEATURES.items():
            read = classifier(take(queries[name]), labels)
            found[name]["read"][of] = {
                pairs: rightly(read(take(held_queries[pairs][name])), truth)
                for pairs, truth in truths.items()}
    return found


def rightly(logits, truth):
    """{attribute: the share of rows whose largest logit is the true one}"""
    return {attribute: (row.argmax(dim=1) == truth[attribute]).float().mean().item()
            for attribute, row in logits.items()}
