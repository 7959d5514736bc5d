"""Improvements of the method, one at a time over the student's best settings, on validation.

Each prediction was written before its idea was measured, and stays as it was. Two seeds tell which ideas are
worth more; those are measured at all seeds, and kept where they help there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import sqrt
from statistics import mean, stdev

from benchmarks.gain.protocol import Protocol
from coterie.ablation import Ablation, Row

LEAST = 0.3  # val mAP that an idea must gain on average
STUDENT = "student"


@dataclass(frozen=True)
class Idea:
    """One change: its settings, and what it was expected to gain on validation, in mAP, and why.

    `model`: "baseline" for a change of the baseline alone; `alike`: the name of that one which does to the
    baseline what this does to the student.
    """

    name: str
    title: str
    words: tuple[str, ...]
    predicted: float
    because: str
    model: str = STUDENT
    alike: str = ""

    @property
    def row(self) -> Row:
        return Row(self.name, self.title, self.words, model=self.model)

    @property
    def limits_views(self) -> bool:
        """Whether it says how many views of an image there are: fewer, where each would be a new one."""
        return any(".views=" in word for word in self.words)


IDEAS = (
    Idea(
        "third-teacher",
        "the baseline as a third teacher, of weight 1/3",
        ("distill.baseline=0.333",),
        0.4,
        "it errs in another way than the teachers of groups, which know nothing of labels outside their own",
    ),
    Idea(
        "half-baseline",
        "the baseline as a third teacher, of weight 1/2",
        ("distill.baseline=0.5",),
        0.3,
        "the teachers of groups are weaker than the baseline, so it may deserve more than a third",
    ),
    Idea(
        "more-views",
        "the student sees a new view of each image in every epoch, 32 instead of 7",
        ("student.views=32",),
        0.3,
        "teachers have something to say of every view, while labels of the same image say nothing new",
        alike="more-views-baseline",
    ),
    Idea(
        "more-views-baseline",
        "the baseline sees a new view of each image in every epoch",
        ("baseline.views=32",),
        0.1,
        "what helps the student must be offered to the baseline too",
        model="baseline",
    ),
    Idea(
        "longer",
        "twice the epochs for the student",
        ("student.epochs=64",),
        0.3,
        "soft targets of several teachers are harder to learn by heart than labels",
    ),
    Idea(
        "longer-views",
        "twice the epochs for the student, and a new view in each",
        ("student.epochs=64", "student.views=64"),
        0.6,
        "patient and consistent teaching needs both: time, and images that do not come again",
        alike="longer-views-baseline",
    ),
    Idea(
        "longer-views-baseline",
        "the baseline has as many epochs, and a new view in each",
        ("baseline.epochs=64", "baseline.views=64"),
        0.4,
        "what helps the student must be offered to the baseline too",
        model="baseline",
    ),
    Idea(
        "longer-16-views",
        "twice the epochs for the student, and 16 views of each image",
        ("student.epochs=64", "student.views=16"),
        0.5,
        "most of what new views give, at a quarter of the cost of asking the teachers",
        alike="longer-views-baseline",
    ),
    Idea(
        "student-start",
        "the student starts from the baseline",
        ("student.start=baseline",),
        -0.2,
        "it begins where the baseline knows the training images by heart",
    ),
    Idea(
        "teacher-start",
        "the teachers start from the baseline",
        ("teacher.start=baseline",),
        0.3,
        "features learned from all labels are better than those learned from a third of them",
    ),
    Idea(
        "temperature",
        "temperature 2",
        ("distill.temperature=2",),
        0.0,
        "probabilities of single labels are soft already",
    ),
    Idea(
        "ap-weights",
        "teachers weighed for each label by their validation AP, to the fourth power",
        ("distill.ap_power=4",),
        0.2,
        "where a group holds a label badly, the other branch may hold it well",
    ),
    Idea(
        "w-falls",
        "the weight of the teachers falls to 0.3",
        ("distill.w_end=0.3",),
        0.1,
        "teachers show the way first, labels the rest of it",
    ),
    Idea(
        "balanced",
        "co-occurrence groups of near equal sizes",
        ("partition.co_method=balanced-cut",),
        0.2,
        "a small group teaches little, and a large one is nearly the baseline",
    ),
    Idea(
        "partitions",
        "two partitions of each kind, twelve teachers",
        ("partition.repeats=2",),
        0.4,
        "as five groups, and each teacher still knows a third of the labels",
    ),
    Idea(
        "k-5",
        "five groups in each branch",
        ("k=5",),
        0.2,
        "ten teachers average more errors away than six, though each knows less",
    ),
    Idea(
        "outside-0.1",
        "teachers learn the labels outside of their group too, which count a tenth of their own",
        ("teacher.outside=0.1",),
        0.5,
        "each label has six answers instead of two, though four of them by teachers that hardly learned it",
    ),
    Idea(
        "outside-0.3",
        "the same, where they count three tenths",
        ("teacher.outside=0.3",),
        0.7,
        "teachers of all labels are better than those of groups; what their groups make them look at keeps "
        "their errors apart",
    ),
    Idea(
        "outside-1",
        "the same, where they count as much as their own: six teachers of all labels",
        ("teacher.outside=1",),
        0.6,
        "the best single teachers, whose errors differ by their seeds alone",
    ),
    Idea(
        "mixup",
        "the student's images mixed in pairs, its teachers looking at the mixture",
        ("student.mixup=0.2", "distill.cache=off"),
        0.3,
        "teachers know what to say of a mixture, and there are endless ones",
    ),
    Idea(
        "relations",
        "distances among label-wise embeddings as those of the teachers",
        ("distill.relations=1", "distill.cache=off"),
        0.1,
        "same architecture, same frozen layers: what the teachers' embeddings know is mostly in their logits",
    ),
    Idea(
        "generator",
        "targets learned from what they do to the student",
        ("distill.generator=1e-3",),
        0.1,
        "it can turn away from a teacher who misleads, but all teachers know the training images well",
    ),
    Idea(
        "augmented",
        "RandAugment and Cutout for every training",
        ("augment.randaugment=true", "augment.cutout=0.3"),
        0.5,
        "teachers say what is left of a label on a distorted picture, where the label itself lies",
        alike="augmented-baseline",
    ),
    Idea(
        "augmented-baseline",
        "the baseline with RandAugment and Cutout",
        ("augment.randaugment=true", "augment.cutout=0.3"),
        0.2,
        "what helps the student must be offered to the baseline too",
        model="baseline",
    ),
)


@dataclass(frozen=True)
class Tried:
    """What came of an idea on validation, by seed, less the same model without it; `of_baseline`: what the
    same change did to the baseline, where it was tried.
    """

    idea: Idea
    differences: dict[int, float]
    of_baseline: dict[int, float] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        return mean(self.differences.values())

    @property
    def promises(self) -> bool:
        """Whether it gains enough on average: with two seeds, no more can be said."""
        return self.idea.model == STUDENT and self.gain >= LEAST

    @property
    def beyond(self) -> list[float]:
        """By how much more it helps than it helps the baseline, at each seed that has both: what helps both
        is no better method.
        """
        others = self.of_baseline if self.idea.alike else dict.fromkeys(self.differences, 0.0)
        return [value - others[seed] for seed, value in self.differences.items() if seed in others]

    @property
    def helps(self) -> bool:
        """Whether it gains enough beyond the baseline, by more than two standard errors, at more seeds than
        those of a search.
        """
        if not self.promises or len(self.beyond) < 3:
            return False
        gain = mean(self.beyond)
        return gain >= LEAST and gain > 2 * stdev(self.beyond) / sqrt(len(self.beyond))


def try_ideas(protocol: Protocol, words: Sequence[str], ideas: Sequence[Idea] = IDEAS) -> list[Tried]:
    """Every idea over the settings `words`, on validation, at the seeds of the searches, and what it does to
    the baseline; those that promise something at all seeds. What OUT holds already is read there.
    """
    known = _found_before(protocol, words)
    by_name = {idea.name: idea for idea in (*IDEAS, *ideas)}

    def and_alike(chosen: Sequence[Idea]) -> list[Idea]:
        return [*dict.fromkeys((*chosen, *(by_name[idea.alike] for idea in chosen if idea.alike)))]

    def measure(chosen: Sequence[Idea], seeds: tuple[int, ...]) -> None:
        """Those that are not known for these seeds."""
        missing = [
            idea
            for idea in chosen
            if idea.name not in known
            or known[idea.name].idea != idea
            or not set(seeds) <= set(known[idea.name].differences)
        ]
        if missing:
            rows = [Row("as-set", "as searched"), *(idea.row for idea in missing)]
            found = protocol.searched(words, rows, seeds)
            known.update({idea.name: Tried(idea, _differences(found, idea)) for idea in missing})
            _write(protocol, words, [_beside_baseline(each, known) for each in known.values()])

    measure(and_alike(ideas), protocol.search_seeds)
    promising = [idea for idea in ideas if known[idea.name].promises]
    measure(and_alike(promising), tuple(dict.fromkeys((*protocol.search_seeds, *protocol.seeds))))
    return [_beside_baseline(known[idea.name], known) for idea in ideas]


def _beside_baseline(tried: Tried, known: Mapping[str, Tried]) -> Tried:
    alike = known.get(tried.idea.alike)
    return tried if alike is None else replace(tried, of_baseline=alike.differences)


def _write(protocol: Protocol, words: Sequence[str], tried: Sequence[Tried]) -> None:
    content = [
        asdict(each.idea)
        | {"differences": each.differences, "gain": each.gain}
        | {"beyond": mean(each.beyond) if each.of_baseline else None, "helps": each.helps}
        for each in tried
    ]
    protocol.write("ideas", {"words": words, "ideas": content})


def _found_before(protocol: Protocol, words: Sequence[str]) -> dict[str, Tried]:
    """The ideas that were measured over the same settings, by name."""
    content = protocol.found_before("ideas")
    if content is None or content["words"] != list(words):
        return {}
    tried = {}
    for values in content["ideas"]:
        described = {each.name: values[each.name] for each in fields(Idea) if each.name in values}
        idea = Idea(**described | {"words": tuple(values["words"])})
        tried[idea.name] = Tried(idea, {int(seed): value for seed, value in values["differences"].items()})
    return tried


def kept_words(tried: Sequence[Tried]) -> tuple[str, ...]:
    """The settings of the ideas that help; of those that change the same setting, the one that gains most."""
    kept: dict[str, str] = {}
    for each in sorted(tried, key=lambda each: each.gain, reverse=True):
        words = dict(word.split("=", 1) for word in each.idea.words)
        if each.helps and not words.keys() & kept.keys():
            kept |= words
    return tuple(f"{key}={value}" for key, value in kept.items())


def _differences(found: Ablation, idea: Idea) -> dict[int, float]:
    values = found.values(idea.name, "val")
    plain = found.values("as-set" if idea.model == STUDENT else "baseline", "val")
    return {seed: value - plain[seed] for seed, value in values.items()}
