"""Lines of text: tokens, what is refused, the generator's likelihood, and metrics against a library and by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from runs import Kept, equal, without_clock
from sacrebleu.metrics import BLEU
from specs import tiny_folder, tiny_spec

from ganlib import checkpoint, registry, shards
from ganlib.config import DatasetConfig, override
from ganlib.data import _kind, sequence
from ganlib.export import Generator, load_generator
from ganlib.game import Batch, Learner, adversarial_step
from ganlib.losses import LOSSES
from ganlib.metrics import copied, nll
from ganlib.metrics._neighbours import nearest
from ganlib.metrics.sequence import bleu_2, bleu_5, distinct_2, self_bleu_3
from ganlib.models import relgan
from ganlib.noise import Noise
from ganlib.spaces.sequence import ngrams
from ganlib.trainer import train
from pipelines._stage import StageError
from pipelines.prepare import prepare

KIND = _kind.load("sequence")
SPEC, EXAMPLES = tiny_spec(KIND)
VERSE = "In the beginning (so it is said) God's house was well-built; and it stood."


def config(lines, **more):
    return sequence.scan(sequence.Config(**more), lines)


def through(cfg, line):
    return sequence.present(cfg, "sample", sequence.encode(cfg, line)["sample"][None])[0]


# -- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.names("data.tokenisers"))
def test_what_a_tokeniser_joins_it_splits_again(name):
    tokeniser = registry.load("data.tokenisers", name)
    for line in (VERSE, "a . b ( c ) 3.5 'd' -- ü €", tokeniser.UNKNOWN, f"{tokeniser.UNKNOWN} x {tokeniser.UNKNOWN}"):
        tokens = tokeniser.split(line)
        assert tokeniser.split(tokeniser.join(tokens)) == tokens
        assert tokeniser.UNKNOWN not in line or tokeniser.UNKNOWN in tokens
    assert tokeniser.join(tokeniser.split(VERSE)) == VERSE


@pytest.mark.parametrize(
    "line",
    [
        "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e",  # Hindi, with vowel signs
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0e04\u0e23\u0e31\u0e1a",  # Thai
        "\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f \u0642\u0627\u0644",  # Arabic, pointed
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u0628\u0631\u0648\u0645",  # Persian, with a non-joiner
        "\u2764\ufe0f \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f467 \U0001f1e9\U0001f1ea",  # emoji
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f x",  # a flag made of tags
        "x\u0301\u0302 y",
    ],
)
def test_marks_stay_with_what_they_change(line):
    tokeniser = registry.load("data.tokenisers", "words")
    assert tokeniser.split(line) == line.split(" ")
    assert tokeniser.join(tokeniser.split(line)) == line


def test_the_vocabulary_keeps_the_most_frequent_in_an_order_of_their_own():
    lines = ["ba", "abc", "abcd", "da"]
    cfg = config(lines, vocabulary_size=3)
    assert cfg.vocabulary == ("a", "b", "c")  # of c and d, which occur as often, the first by name
    assert sequence.scan(sequence.Config(vocabulary_size=3), reversed(lines)) == cfg
    assert through(cfg, "dabc") == "�abc"
    assert sequence.encode(cfg, "cab�")["sample"].tolist() == [4, 2, 3, 1]


def test_a_line_ends_where_it_is_full_or_at_the_first_end():
    cfg = config(["abc", "ba"])
    assert cfg.length == 3
    assert sequence.encode(cfg, "ba")["sample"].tolist() == [3, 2, 0]
    scores = torch.zeros(1, 3, 5)
    scores[0, [0, 1, 2], [3, 0, 4]] = 1.0
    assert sequence.quantise(cfg, scores).tolist() == [[3, 0, 0]]


def test_case_and_combining_accents():
    cfg = config(["Éa", "E\N{COMBINING ACUTE ACCENT}b"])
    assert cfg.vocabulary == ("a", "b", "É")
    assert config(["Éa", "éb"], lowercase=True).vocabulary == ("a", "b", "é")


def test_lengths_that_are_too_much():
    lines = ["x" * 7] * 999 + ["y" * 100_000]
    cfg = config(lines)
    assert (cfg.length, cfg.vocabulary) == (7, ("x",)), "lines that will be rejected teach nothing"
    with pytest.raises(ValueError, match=r"^100000 tokens, sample.length has room for 7 \(sample.longer: cut"):
        sequence.encode(cfg, lines[-1])
    cut = config(lines, longer="cut")
    assert through(cut, lines[-1]) == "y" * 7
    for bad, message in (("  ", "the line is empty"), (b"x", "expected a line of text, found bytes")):
        with pytest.raises(ValueError, match=message):
            sequence.encode(cfg, bad)


def test_large_vocabularies_are_stored_in_two_bytes():
    lines = [chr(0x4E00 + i) + "x" for i in range(300)]
    cfg = config(lines)
    assert sequence.parts(cfg)["sample"].dtype == "int16"
    stored = torch.from_numpy(np.stack([sequence.encode(cfg, line)["sample"] for line in lines]))
    assert torch.equal(sequence.quantise(cfg, sequence.decode(cfg, "sample", stored)), stored)
    seen = sequence.decode(cfg, "sample", stored)
    spread = [torch.pdist(x.flatten(1)).mean() for x in (sequence.glance(seen), seen)]
    assert float(spread[0] / spread[1]) == pytest.approx(1.0, abs=0.1)
    assert sequence.preview(cfg, {"sample": seen[:9]}, 3).width > 0  # glyphs that the font lacks


def test_a_name_that_is_no_tokeniser():
    with pytest.raises(ValueError, match=r"did you mean 'words'.*known: characters, words"):
        sequence.Config(tokeniser="word")


# -- the source ----------------------------------------------------------------------------------------------------


def prepared(raw, out, source=(), **sample):
    cfg = DatasetConfig(source={"name": "lines", **dict(source)}, sample={"kind": "sequence", **sample}, test_share=0.4)
    prepare(cfg, raw, out)
    return shards.read_spec(out)


def words(n, letters="abcde", size=5):
    return ["".join(letter) for letter in itertools.islice(itertools.product(letters, repeat=size), n)]


def test_files_are_classes_and_faults_name_file_and_line(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "red.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(words(250)).encode() + b"\r\n\r\n  \r\n")
    (raw / "blue.txt").write_bytes("\n".join(words(250, "vwxyz")).encode() + b"\nab\xffcd\n" + b"q" * 100_000 + b"\nx")
    spec = prepared(raw, tmp_path / "out", {"labels": "files"}, length=5)
    assert spec.classes == ("blue", "red")
    assert sum(spec.counts.values()) == 501
    assert "\ufeff" not in spec.sample.vocabulary
    rejects = (tmp_path / "out" / "rejects.csv").read_text().splitlines()[1:]
    assert [line.partition(",")[0] for line in rejects] == ["blue.txt:251", "blue.txt:252"]
    assert "not UTF-8: byte 0xff at 2" in rejects[0]
    assert "100000 tokens, sample.length has room for 5" in rejects[1]


def test_columns_of_a_delimiter_and_parts_of_a_file(tmp_path, monkeypatch):
    from ganlib.sources import lines as source

    monkeypatch.setattr(source, "_PART_LINES", 7)
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = [f"{'odd' if i % 2 else 'even'}\t{word}\n\n" for i, word in enumerate(words(100))]
    (raw / "a.tsv").write_text("".join(rows))
    cfg = source.Config(files=("*.tsv",), delimiter="\t", column=1, labels="column", label_column=0)
    found = source.load(cfg, raw)
    assert (found.count, found.classes, len(found.parts)) == (100, ("even", "odd"), 15)
    items = [item for part in found.parts for item in part()]
    assert [item.payload for item in items] == words(100)
    assert [item.label for item in items[:3]] == [0, 1, 0]
    assert items[8].id == "a.tsv:17"
    assert found.notes == ()
    (raw / "a.tsv").write_text("".join(f"""{'"' if i % 3 == 0 else ""}{w}\teven\n""" for i, w in enumerate(words(100))))
    assert source.load(cfg, raw).notes == ()
    (raw / "a.tsv").write_text("".join(f'"{word}"\t"even"\n' for word in words(100)))
    (note,) = source.load(cfg, raw).notes
    assert note.startswith("Most lines begin with a quotation mark: they are not read as CSV")
    assert source.load(source.Config(files=("*.tsv",)), raw).notes == (), "without columns marks are but text"
    with pytest.raises(ValueError, match="labels: column needs a delimiter"):
        source.Config(labels="column")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no line of text in 1 files, as a.txt"),
        ("\n".join(words(50)).encode("utf-16"), "a.txt: UTF-16 or UTF-32 by its first bytes; expected UTF-8"),
        (b"x\n", "too few data"),
        (None, r"no file matches source.files \(\*\*/\*.txt\)"),
    ],
)
def test_what_is_no_text_is_one_line(content, message, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    if content is not None:
        (raw / "a.txt").write_bytes(content)
    with pytest.raises(StageError, match=message) as error:
        prepared(raw, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_package_that_is_not_installed(tmp_path):
    with pytest.raises(StageError, match=r"source\.package: 'no_such_package' is not installed; pip install"):
        prepared(tmp_path, tmp_path / "out", {"package": "no_such_package"})


def test_a_line_that_is_too_long_to_be_held(tmp_path, monkeypatch):
    from ganlib.sources import lines as source

    monkeypatch.setattr(source, "_LINE_BYTES", 64)
    (tmp_path / "a.txt").write_bytes(b"x" * 200 + b"\nshort\n" + b"y" * 64 + b"\n" + b"z" * 63)
    items = [item for part in source.load(source.Config(), tmp_path).parts for item in part()]
    assert [(item.payload, item.reason[:6]) for item in items] == [
        (None, "longer"),
        ("short", "there "),
        (None, "longer"),
        ("z" * 63, "there "),
    ]
    assert [item.id for item in items] == ["a.txt:1", "a.txt:2", "a.txt:3", "a.txt:4"]


# -- what a model is asked about -----------------------------------------------------------------------------------


def test_lines_are_taken_in_every_form_that_holds_them():
    (made, spec), lines = game(), ["ab", "", "a"]
    generator = Generator(made, spec, {}, torch.device("cpu"))
    taken = generator.take("sample", lines)
    assert generator.present(taken) == lines
    assert generator.answer({"sample": taken})["nll"].isfinite().all()
    for same in (np.array(lines), pd.Series(lines, index=[7, 8, 9]), pd.DataFrame({"text": lines}), (*lines,)):
        assert torch.equal(generator.take("sample", same), taken)
    for one, found in (("ab", "str"), ({"text": "ab"}, "dict"), (Path("a"), "PosixPath"), (3, "int")):
        with pytest.raises(ValueError, match=f"sample: expected a list of examples, found {found};"):
            generator.take("sample", one)
    with pytest.raises(ValueError, match="expected one column of text, found 2"):
        generator.take("sample", pd.DataFrame({"text": lines, "more": lines}))


def test_a_file_is_one_line_as_the_source_reads_it(tmp_path):
    cfg, file = config(["ab\N{LINE SEPARATOR}c", "ba"]), tmp_path / "a.txt"
    expected = sequence.encode(cfg, "ab\N{LINE SEPARATOR}c")["sample"]
    file.write_bytes("\ufeff\r\nab\N{LINE SEPARATOR}c\r\n\n".encode())
    np.testing.assert_array_equal(sequence.take(cfg, "sample", file), expected)
    for content, found in ((b"ab\nba\n", 2), (b" \n", 0)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"expected one line of text, found {found}: each file is one example"):
            sequence.take(cfg, "sample", file)


# -- metrics and spaces --------------------------------------------------------------------------------------------


def tokens(seed, n, vocabulary=4, length=9):
    rng = np.random.default_rng(seed)
    found = rng.integers(1, vocabulary + 1, (n, length))
    found[np.arange(length) >= rng.integers(1, length + 1, n)[:, None]] = 0
    return torch.from_numpy(found).to(torch.uint8)


def texts(lines):
    return [" ".join(f"w{token}" for token in line if token) for line in lines.tolist()]


def test_bleu_is_sacrebleus_with_all_reals_as_references():
    fake, real = tokens(0, 13), tokens(1, 7)
    references = [[text] * 13 for text in texts(real)]
    for metric, order in ((bleu_2, 2), (bleu_5, 5)):
        expected = BLEU(tokenize="none", max_ngram_order=order).corpus_score(texts(fake), references).score
        assert 100 * metric.compute({"tokens": real}, {"tokens": fake}) == pytest.approx(expected)


def test_self_bleu_is_sacrebleus_with_the_others_as_references():
    fake = torch.cat([tokens(0, 12), tokens(2, 1, length=9)])
    lines = texts(fake)
    others = [[lines[(i + shift) % 13] for i in range(13)] for shift in range(1, 13)]
    expected = BLEU(tokenize="none", max_ngram_order=3).corpus_score(lines, others).score
    assert 100 * self_bleu_3.compute({"tokens": fake}, {"tokens": fake}) == pytest.approx(expected)
    assert self_bleu_3.compute({}, {"tokens": fake[:1].expand(5, -1)}) == pytest.approx(1.0)


def test_distinct_by_hand():
    fake = torch.tensor([[1, 2, 1, 2, 0], [1, 2, 3, 0, 0], [3, 0, 0, 0, 0]])  # 12 21 12 | 12 23
    assert distinct_2.compute({}, {"tokens": fake}) == pytest.approx(3 / 5)
    assert distinct_2.compute({}, {"tokens": fake[2:]}) == 0


def test_ngrams_tell_lines_apart_and_scale_as_the_kernel_distance_wants():
    rows = EXAMPLES["sample"][:60]
    features = ngrams.load(ngrams.Config(), SPEC, torch.device("cpu"))(rows)
    torch.testing.assert_close(features.square().mean(1), torch.ones(60))
    assert torch.pdist(features).min() > 1
    again = ngrams.load(ngrams.Config(), SPEC, torch.device("cpu"))(rows.flip(0)).flip(0)
    torch.testing.assert_close(again, features)
    half = features[:30]
    sides = [{"features": x, "nearest": nearest(x, half, 1)[0][:, 0]} for x in (features[30:], features[20:40])]
    assert copied.compute(*sides) == pytest.approx(0.5)


# -- the generator -------------------------------------------------------------------------------------------------


def game(core="relational", classes=(), **network):
    torch.manual_seed(0)
    spec = dataclasses.replace(SPEC, classes=classes)
    cfg = relgan.Config(**{"core": core, "width": 8, "embedding": 6, "discriminator_width": 4, **network})
    return relgan.build(cfg, spec), spec


@pytest.mark.parametrize("network", [{}, {"core": "gru"}, {"slots": 3, "heads": 4}], ids=str)
def test_probabilities_of_all_lines_sum_to_one(network):
    made, _ = game(**network)
    generator = made.generator
    generator.length, size = 3, generator.tokens
    everything = torch.tensor(list(itertools.product(range(size), repeat=3)))
    # one line for each: nothing but ends after an end
    ends = (everything == 0).long().cumsum(1) > 0
    lines = torch.unique(everything.masked_fill(ends, 0), dim=0)
    with torch.no_grad():
        nll, counted = generator.nll(torch.nn.functional.one_hot(lines, size).float(), None)
    assert float((-nll.double()).exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert counted.tolist() == [min(3, 1 + int((line != 0).sum())) for line in lines]


@pytest.mark.parametrize("core", ["relational", "gru"])
def test_lines_are_drawn_as_often_as_their_likelihood_says(core):
    made, spec = game(core)
    made.generator.length = 2
    n = 20_000
    with torch.no_grad():
        lines = made.generator(made.ask({}, Noise(0, size=n), None))
        found, counts = torch.unique(sequence.quantise(spec.sample, lines), dim=0, return_counts=True)
        p = (-made.generator.nll(sequence.decode(spec.sample, "sample", found), None)[0]).exp()
    error = (counts / n - p) / (p * (1 - p) / n).sqrt()
    assert float(error.abs().max()) < 4.5
    assert float(error.square().mean()) == pytest.approx(1.0, abs=0.6)


def test_truncation_is_the_temperature_of_sampling():
    made, _ = game()

    def surprise(truncation):
        with torch.no_grad():
            nll, tokens = made.generator.nll(made.generator(made.ask({}, Noise(0, size=2000), truncation)), None)
        return float(nll.sum() / tokens.sum())

    cold, plain, hot = map(surprise, (0.2, None, 5.0))
    assert cold < plain - 0.1
    assert plain < hot - 0.02
    assert surprise(1.0) == plain


def test_lines_are_one_hot_and_their_gradient_is_the_gumbel_softmaxs():
    made, spec = game(temperature=0.7)
    inputs = made.ask({}, Noise(0, size=6), None)
    lines = made.generator(inputs)
    with torch.no_grad():
        assert torch.equal(made.generator(inputs), lines)
    assert torch.equal(lines, lines.round())
    assert torch.equal(lines.sum(2), torch.ones(6, spec.shape[0]))
    # of the first token, whose scores depend on the last layer's bias alone in a known way
    weight = torch.arange(spec.shape[1]).float()
    (gradient,) = torch.autograd.grad((lines[:, 0] * weight).sum(), made.generator.logits.bias)
    from ganlib.noise import uniform

    output, _ = made.generator.core(
        made.generator.embedding.weight[:1].expand(6, 1, -1), made.generator.core.initial(6)
    )
    gumbel = -(-uniform(inputs["keys"], 0, spec.shape[1]).log()).log()
    soft = ((made.generator.logits(output[:, 0]) + gumbel) / 0.7).softmax(1)
    expected = (soft * (weight - (soft * weight).sum(1, keepdim=True))).sum(0) / 0.7
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_a_schedule_anneals_the_generator_alone():
    made, _ = game(temperature={"kind": "linear", "start": 1.0, "end": 0.5, "to_kimg": 2})
    made.progress(made.generator, 1.0)
    made.progress(made.discriminator, 1.0)
    assert made.generator.softness == pytest.approx(0.75)
    assert game()[0].progress is None


def test_answers_of_a_conditional_model():
    made, _ = game(classes=("a", "b"))
    lines = EXAMPLES["sample"][:5]
    of_class = [made.answers({"sample": lines, "label": torch.full((5,), k)})["nll"] for k in (0, 1)]
    assert not torch.allclose(*of_class)
    marginal = made.answers({"sample": lines})["nll"]
    expected = -torch.stack([-x for x in of_class]).exp().mean(0).log()
    torch.testing.assert_close(marginal, expected)


@pytest.mark.parametrize("conditioning", ["none", "concat", "projection", "auxiliary", "reacgan"])
def test_both_players_are_class_conditional(conditioning):
    made, _ = game(classes=("a", "b"), conditioning=conditioning)
    batch = Batch({"sample": EXAMPLES["sample"][:8], "label": torch.arange(8) % 2}, Noise(0, size=8))
    learners = [Learner(m, torch.optim.SGD(m.parameters()), 0.1) for m in (made.generator, made.discriminator)]
    stats = adversarial_step(made, LOSSES["relativistic"], *learners, [[batch]], step=0, kimg=0.0)
    assert all(value.isfinite() for value in stats.values())
    assert (f"loss/generator/{conditioning}" in stats) == (conditioning in ("auxiliary", "reacgan"))
    classes = [torch.zeros(8, dtype=torch.long), torch.ones(8, dtype=torch.long)]
    with torch.no_grad():
        told = [made.generator.nll(batch.data["sample"], label)[0] for label in classes]
        logits = [made.discriminator(batch.data["sample"], label).logits for label in classes]
    assert torch.equal(*told) == (conditioning == "none")
    assert torch.equal(*logits) == (conditioning in ("none", "auxiliary", "reacgan"))
    assert logits[0].shape == (8, 8)


def test_what_the_network_refuses():
    with pytest.raises(ValueError, match="heads: expected a divisor of width, 8, found 3"):
        relgan.Config(width=8, heads=3)


# -- training ------------------------------------------------------------------------------------------------------

CHANGES = {
    "network.width": 16,
    "network.discriminator_width": 4,
    "fits.likelihood.kimg": 1.28,
    "fits.likelihood.lr": 1e-2,
    "batch": 32,
}


@pytest.fixture(scope="module")
def trained(params, tmp_path_factory):
    """`(parameters, prepared folder, what was reported)` of a fit and a game of four reports each."""
    folder = tiny_folder(KIND, tmp_path_factory.mktemp("lines") / "prepared")
    budget = {"kimg": 0.128, "report_kimg": 0.032, "checkpoint_kimg": 0.032, "amp": False, "quality_samples": 0}
    chosen = params.model_copy(
        update={"model": "relgan", "train": params.train.model_copy(update={**budget, "report_kimg": 0.064})}
    )
    chosen = override(chosen, CHANGES)
    kept = Kept(tmp_path_factory.mktemp("kept"))
    train(chosen, kept, prepared=folder)
    return chosen, folder, kept


def test_likelihood_is_learnt_first_and_then_kept(trained):
    _, folder, kept = trained
    fit = [row["loss/likelihood"] for row in kept.rows if "fit_kimg" in row]
    spec = shards.read_spec(folder)
    assert fit[-1] < fit[0] - 1
    assert fit[-1] < math.log(spec.shape[1]) * spec.shape[0], "a uniform guess"
    stored = shards.read(folder, "test")["sample"]
    lines = spec.kind.decode(spec.sample, "sample", stored)
    found = [load_generator(kept.folders[i] / "generator").answer({"sample": lines}) for i in (0, len(fit) - 1, -1)]
    early, before, after = (nll.compute(answers, answers) for answers in found)
    assert before < early
    assert after == pytest.approx(before, rel=0.03)


@pytest.mark.parametrize("done", [5, -2], ids=["in the fit", "in the game"])
def test_killed_and_resumed_gives_equal_bits(trained, tmp_path, done):
    chosen, folder, kept = trained
    assert ("fit_kimg" in kept.rows[done]) == (done == 5)
    again = Kept(tmp_path)
    train(chosen, again, prepared=folder, resume=kept.folders[done])
    one, other = (without_clock(checkpoint.load(run.folders[-1])) for run in (kept, again))
    assert equal(one, other)


def test_the_likelihood_in_the_game_is_that_of_the_batch():
    made, _ = game()
    rows = {"sample": EXAMPLES["sample"][:4]}
    batch = Batch(rows, Noise(0, size=4))
    (fit,) = made.before
    torch.testing.assert_close(fit.loss(made, batch), made.generator.nll(rows["sample"], None)[0])
    assert {term.name for term in made.terms} == {"likelihood"}
    assert not game(likelihood_weight=0)[0].terms
