"""`params.yaml` and `params/`: what is shipped is valid, and what is wrong is said in a line that helps."""

import copy
import re
import shutil
from pathlib import Path

import pytest
from params_files import copy_params, edit_params
from ruamel.yaml import YAML
from specs import image_spec

from ganlib import registry
from ganlib.config import ConfigError, TrainConfig, load_params, override, parse_params, read_params

ROOT = Path(__file__).parents[2]
SHIPPED = read_params(ROOT / "params.yaml")
SCHEDULE = {"start": 0.5, "end": 0.5, "to_kimg": 10}


def changed(dotted, value, *, drop=False):
    raw = copy.deepcopy(SHIPPED)
    *parents, leaf = dotted.split(".")
    node = raw
    for parent in parents:
        node = node[parent]
    if drop:
        del node[leaf]
    else:
        node[leaf] = value
    return raw


@pytest.mark.parametrize("model", SHIPPED["models"])
@pytest.mark.parametrize("data", SHIPPED["datasets"])
def test_every_choice_of_the_shipped_file_is_valid(data, model):
    params = parse_params({**SHIPPED, "data": data, "model": model})
    assert params.dataset.source.name in registry.names("sources")
    assert params.game.network.family in registry.names("models")


def test_every_family_has_a_file_of_settings():
    assert set(SHIPPED["models"]) == set(registry.names("models"))


PRESETS = [
    (preset, model) for preset, said in SHIPPED["presets"].items() for model in said.get("models", SHIPPED["models"])
]


@pytest.mark.parametrize(("preset", "model"), PRESETS)
def test_every_preset_suits_every_model_it_names(preset, model):
    params = parse_params({**SHIPPED, "model": model, "preset": preset})
    said = {key: value for key, value in SHIPPED["presets"][preset].items() if key != "models"}
    resolved = params.game.model_dump(mode="json")
    for key, value in said.items():
        if key in ("network", "generator", "discriminator"):
            assert {name: params.game.model_dump(mode="json")[key][name] for name in value}.keys() == value.keys()
        elif key in ("loss", "discriminator_steps"):
            assert resolved[key] == value
    if "penalties" in said:
        assert resolved["penalties"].keys() == said["penalties"].keys()


@pytest.mark.parametrize(("preset", "model"), [case for case in PRESETS if case[0].startswith("wgan_gp")])
def test_a_critic_with_gradient_penalty_has_no_norm(preset, model):
    """Gulrajani et al. 2017, section 4."""
    params = parse_params({**SHIPPED, "model": model, "preset": preset})
    spec = image_spec((3, 32, 32), ("a", "b"))
    critic = registry.load("models", model).build(params.game.network, spec).discriminator
    assert not [type(layer).__name__ for layer in critic.modules() if "Norm" in type(layer).__name__]


def test_presets_are_laid_over_the_model():
    params = parse_params({**SHIPPED, "preset": "wgan_gp"})
    assert params.game.loss == "wasserstein"
    assert list(params.game.penalties) == ["gradient_penalty"]  # and not the section's r1 as well
    assert params.game.generator.betas == (0.0, 0.9)
    assert params.game.generator.optimizer == "adam"  # which the preset does not speak of
    changed = override(params, {"generator.lr": 0.5})
    assert changed.game.generator.lr == 0.5
    assert changed.game.loss == "wasserstein"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"preset": "wgan"},
            r"preset: there is no params/presets/wgan\.yaml \(did you mean 'wgan_gp'\?\); known: biggan, ",
        ),
        ({"preset": "biggan"}, "preset: 'biggan' is for resnet; model is 'dcgan'"),
        ({"preset": "p", "presets": {"p": {"lss": "hinge"}}}, "presets.p: on models.dcgan: unknown key 'lss'.*'loss'"),
        ({"preset": "p", "presets": {"p": {"network": {"depth": 2}}}}, "presets.p: on models.dcgan.*'depth'"),
    ],
)
def test_presets_that_do_not_suit_are_refused(raw, message):
    with pytest.raises(ConfigError, match=message):
        parse_params({**SHIPPED, **raw})


def test_a_penalty_that_a_preset_replaces_is_not_searched():
    own = {"penalties.r1.weight": {"uniform": [1, 2]}, "batch": {"choice": [8]}}
    raw = changed("models.dcgan.search", own)
    assert parse_params(raw).game.search.keys() == own.keys()
    assert parse_params({**raw, "preset": "wgan_gp"}).game.search.keys() == {"batch"}


def test_every_key_is_commented_where_it_first_stands():
    """On its line, on a line of its own above, or before, in the comment of another, as the keys of a schedule are."""
    explained = [ROOT / "params/datasets/mnist.yaml", ROOT / "params/models/dcgan.yaml"]
    others = [file for file in sorted((ROOT / "params").rglob("*.yaml")) if file not in explained]

    def keys_of(section, line=None):
        for key, value in section.items():
            at = section.lc.key(key)[0] if line is None else line
            if isinstance(value, dict):  # what is in braces belongs to the line of the key before them
                yield from keys_of(value, at if value.fa.flow_style() else None)
            else:
                yield key, at

    seen, comments, silent = set(), [], []
    for file in (ROOT / "params.yaml", *explained, *others):
        lines = file.read_text().splitlines()
        here = [line.partition("#")[2] for line in lines]
        for key, at in keys_of(YAML().load("\n".join(lines))):
            indent = " " * (len(lines[at]) - len(lines[at].lstrip()))
            own = here[at] or (at and indent and lines[at - 1].startswith(f"{indent}#"))
            if key not in seen and not own and not re.search(rf"\b{key}[:,]", "\n".join(comments + here[:at])):
                silent.append(f"{file.relative_to(ROOT)}: line {at + 1}: {key}")
            seen.add(key)
        comments += here
    assert silent == []


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (changed("trian", {}), ["unknown key 'trian'", "did you mean 'train'"]),
        (changed("models.dcgan.bacth", 3), ["models.dcgan: unknown key 'bacth'", "did you mean 'batch'"]),
        (changed("models.dcgan.batch", "many"), ["models.dcgan.batch", "'many'", "integer"]),
        (changed("models.dcgan.batch", 0), ["models.dcgan.batch", "greater than 0", "found 0"]),
        (changed("train.health.sure", True), ["train.health", "sure is now strict_only"]),
        (changed("train.kimg", float("nan")), ["train.kimg", "expected auto or a finite number above 0"]),
        (changed("model", "dcgna"), ["model: ", "params/models/dcgna.yaml", "did you mean 'dcgan'", "mlp"]),
        (changed("data", "mnits"), ["data: ", "params/datasets/mnits.yaml", "did you mean 'mnist'"]),
        (changed("models.dcgan.network.widht", 3), ["models.dcgan.network", "'widht'", "did you mean 'width'"]),
        (changed("models.dcgan.network.width", -1), ["models.dcgan.network.width", "greater than 0", "found -1"]),
        (changed("models.dcgan.loss", "hinged"), ["models.dcgan.loss", "'hinged'", "did you mean 'hinge'"]),
        (changed("models.dcgan.penalties.r9", {"weight": 1}), ["models.dcgan.penalties.r9", "'r9'", "r1"]),
        (
            changed("models.dcgan.penalties", {"r1": {"weight": 1, "sigma": 0.1}}),
            ["models.dcgan.penalties.r1: unknown key 'sigma'", "known: weight, every"],
        ),
        (
            changed("models.dcgan.penalties", {"r1_approx": {"weight": 1, "sigma": 0}}),
            ["models.dcgan.penalties.r1_approx.sigma: ", "greater than 0 (found 0)"],
        ),
        (
            changed("models.dcgan.penalties", {"r2_approx": {"weight": 1, "batch_shrnk": 2}}),
            ["models.dcgan.penalties.r2_approx: unknown key 'batch_shrnk'", "did you mean 'batch_shrink'"],
        ),
        (changed("models.dcgan.penalties", 3), ["models.dcgan.penalties: ", "found 3"]),
        (changed("models.dcgan.generator.lr", -1e-3), ["models.dcgan.generator.lr: ", "greater than 0 (found -0.001)"]),
        (changed("models.dcgan.generator.lr", "fast"), ["models.dcgan.generator.lr: ", "a valid number", "'fast'"]),
        (changed("models.dcgan.top_k", {"start": 1, "end": 1}), ["models.dcgan.top_k.to_kimg: Field required"]),
        (changed("models.dcgan.top_k", {"strat": 1}), ["models.dcgan.top_k: unknown key 'strat'", "'start'"]),
        (
            changed("presets.biggan.network.widht", 3),
            ["presets.biggan: on models.resnet: network: unknown key 'widht'", "did you mean 'width'"],
        ),
        (
            changed("presets.lsgan.generator.lr", 0),
            ["presets.lsgan: on models.mlp: generator.lr: ", "greater than 0 (found 0)"],
        ),
        (
            changed("presets.lsgan.models", ["mlp", "dcgna"]),
            ["presets.lsgan.models: there is no params/models/dcgna.yaml", "did you mean 'dcgan'"],
        ),
        (changed("presets.lsgan.models", "mlp"), ["presets.lsgan.models: expected a list, found 'mlp'"]),
        (
            changed("models.mlp.search", {"generater.lr": {"choice": [1]}}),
            ["models.mlp: search.generater.lr: there is no section 'generater'", "did you mean 'generator'"],
        ),
        (
            changed("models.mlp.search", {"network.widht": {"choice": [1]}}),
            ["models.mlp: search.network.widht: network: unknown key 'widht'", "did you mean 'width'"],
        ),
        (
            changed("models.mlp.search", {"network.width": {"uniform": [0.5, 9]}}),
            ["models.mlp: search.network.width: network.width: ", "integer", "found 0.5"],
        ),
        (
            changed("models.mlp.search", {"batch": {"uniform": [1, 8]}}),
            ["models.mlp: search.batch: is a whole number; search it by randint or choice"],
        ),
        (changed("models.mlp.search", {"batch": {"choice": [8, -1]}}), ["search.batch: batch: ", "greater than 0"]),
        (
            changed("models.mlp.search", {"loss": {"choice": ["hinge", "hing"]}}),
            ["search.loss: loss: 'hing' is not known", "did you mean 'hinge'"],
        ),
        (
            changed("models.mlp.search", {"generator.lr": {"uniform": [1e-4, -1]}}),
            ["models.mlp.search.generator.lr: the lower bound must lie below the upper"],
        ),
        (changed("models.mlp.search", {"top_k": {"uniform": [0.5, 2]}}), ["search.top_k: top_k: ", "found 2"]),
        (
            changed("models.mlp.generator.lr", SCHEDULE | {"end": -1e-3}),
            ["models.mlp.generator.lr: end: Input should be greater than or equal to 0, found -0.001"],
        ),
        (changed("models.mlp.top_k", SCHEDULE | {"start": 5}), ["models.mlp.top_k: start: ", "found 5"]),
        (
            changed("models.mlp.generator.betas", [0.5, SCHEDULE | {"end": 1.5}]),
            ["models.mlp.generator.betas.1: end: ", "found 1.5"],
        ),
        (changed("models.mlp.ema_halflife_kimg", SCHEDULE | {"end": -1}), ["ema_halflife_kimg: end: ", "found -1"]),
        (
            changed("models.mlp.penalties", {"r1": {"weight": SCHEDULE | {"end": -1}}}),
            ["models.mlp.penalties.r1.weight: end: ", "found -1"],
        ),
        (
            changed("models.mlp.generator.lr", SCHEDULE | {"from_kimg": 20}),
            ["models.mlp.generator.lr.to_kimg: it lies before from_kimg, 20 (found 10)"],
        ),
        (changed("models.mlp.network", "foo"), ["models.mlp.network: expected a mapping with the key 'family'"]),
        (changed("models.mlp.loss", ["hinge"]), ["models.mlp.loss: ['hinge'] is not known"]),
        (changed("seed", 2**32), ["seed: Input should be less than 4294967296 (found 4294967296)"]),
        (changed("models.dcgan.search.x", {"uniform": [1, 0]}), ["models.dcgan.search.x", "lower bound"]),
        (changed("models.dcgan.search.x", {}), ["models.dcgan.search.x", "exactly one"]),
        (changed("models.no_such_family", {"network": {}}), ["models.no_such_family.network", "'no_such_family'"]),
        (changed("datasets.mnist.source.name", "minst"), ["datasets.mnist.source", "'minst'", "did you mean 'mnist'"]),
        (
            changed("datasets.photos.sample.kind", "pair"),
            ["datasets.photos.sample.kind: 'pair' does not suit; source 'image_folder' feeds image"],
        ),
        (
            changed("datasets.pairs.sample.kind", "image"),
            ["datasets.pairs.sample.kind: 'image' does not suit; source 'paired_folder' feeds pair"],
        ),
        (changed("datasets.mnist.source", {}), ["datasets.mnist.source", "'name' is one of", "image_folder"]),
        (changed("datasets.mnist.sample.resolution", [28]), ["datasets.mnist.sample.resolution"]),
        (changed("train.kimg", None, drop=True), ["train.kimg", "required"]),
        ("just text", ["expected a mapping, found str"]),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_a_fault_is_said_in_one_line_that_helps(raw, expected):
    with pytest.raises(ConfigError) as caught:
        parse_params(raw)
    message = str(caught.value)
    for part in expected:
        assert part in message
    assert message.startswith("params.yaml: ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", ["o'brien", "a/b", "a:b", "../../../x", ".hidden", "a b", "v1.0", "a\n", ""])
@pytest.mark.parametrize("section", ["datasets", "models", "presets"])
def test_names_of_sections_are_names_of_folders_and_models(section, name):
    raw = changed(section, {**SHIPPED[section], name: next(iter(SHIPPED[section].values()))})
    with pytest.raises(ConfigError) as caught:
        parse_params(raw)
    said = f": a name is made of letters, digits, _ and - (found {name!r})"
    assert any(line.endswith(said) for line in str(caught.value).splitlines())


@pytest.mark.parametrize("name", ["o'brien", "a/b", "a:b", "../../../x", ".hidden", "a b", "m@1", ""])
def test_names_of_registered_models(name):
    with pytest.raises(ConfigError) as caught:
        parse_params(changed("tracking.registered_model", name))
    allowed = "letters, digits, _, - and, after the first, dots"
    assert str(caught.value) == f"params.yaml: tracking.registered_model: a name is made of {allowed} (found {name!r})"
    assert parse_params(changed("tracking.registered_model", "gan-v1.0_é")).registered_model == "gan-v1.0_é"


def test_a_source_that_names_no_kinds_feeds_any(monkeypatch):
    monkeypatch.delattr(registry.load("sources", "image_folder"), "KINDS")
    parse_params(changed("datasets.photos.sample", {"kind": "pair", "resolution": [8, 8]}))


def test_a_share_that_the_source_would_ignore_is_refused():
    owners = [name for name, section in SHIPPED["datasets"].items() if "test_share" in section["source"]]
    assert {"ages", "domains", "domains_of_classes"} <= {*owners}
    for name in owners:
        with pytest.raises(ConfigError) as caught:
            parse_params(changed(f"datasets.{name}.test_share", 0.3))
        source = SHIPPED["datasets"][name]["source"]["name"]
        assert str(caught.value) == (
            f"params.yaml: datasets.{name}.test_share: source {source!r} has a test_share of its own; "
            "set source.test_share instead (found 0.3)"
        )
        parse_params(changed(f"datasets.{name}.source.test_share", 0.3))


def test_several_faults_are_several_lines():
    raw = changed("train.accumulate", 0)
    raw["seed"] = -1
    with pytest.raises(ConfigError) as caught:
        parse_params(raw)
    assert len(str(caught.value).splitlines()) == 2


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the shipped files, and in it."""
    copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.kimg": -1}, "params.yaml: train.kimg: "),
        (
            {"model": "dcgna"},
            "params.yaml: model: there is no params/models/dcgna.yaml (did you mean 'dcgan'?); known: ",
        ),
        (
            {"model": "dcgan.yaml"},
            "params.yaml: model: there is no params/models/dcgan.yaml.yaml (did you mean 'dcgan'",
        ),
        ({"preset": "biggan"}, "params.yaml: preset: 'biggan' is for resnet; model is 'dcgan'"),
        ({"params/models/mlp.yaml:generator.lr": 0}, "params/models/mlp.yaml: generator.lr: "),
        ({"params/models/mlp.yaml:generator": {"rl": 1}}, "params/models/mlp.yaml: generator: unknown key 'rl'"),
        (
            {"params/models/mlp.yaml:search": {"generater.lr": {"choice": [1]}}},
            "params/models/mlp.yaml: search.generater.lr: there is no section 'generater'",
        ),
        ({"params/datasets/photos.yaml:source.labels": "yes"}, "params/datasets/photos.yaml: source.labels: "),
        ({"params/datasets/photos.yaml:sample.kind": "pair"}, "params/datasets/photos.yaml: sample.kind: 'pair' does"),
        (
            {"params/presets/biggan.yaml:network": {"widht": 3}},
            "params/presets/biggan.yaml: on models.resnet: network: unknown key 'widht'",
        ),
        (
            {"params/presets/lsgan.yaml:models": ["dcgna"]},
            "params/presets/lsgan.yaml: models: there is no params/models/dcgna.yaml (did you mean 'dcgan'?)",
        ),
    ],
    ids=str,
)
def test_a_fault_is_said_to_be_where_it_stands(files, changes, expected):
    edit_params(files, changes)
    with pytest.raises(ConfigError) as caught:
        load_params()
    (line,) = str(caught.value).splitlines()
    assert line.startswith(expected)


def test_faults_of_several_files_are_lines_of_their_own(files):
    edit_params(files, {"seed": -1, "params/models/mlp.yaml:batch": 0, "params/datasets/mnist.yaml:test_share": 2})
    with pytest.raises(ConfigError) as caught:
        load_params(files / "params.yaml")
    places = [line.partition(": ")[0] for line in str(caught.value).splitlines()]
    assert sorted(places) == [
        str(files / "params.yaml"),
        str(files / "params/datasets/mnist.yaml"),
        str(files / "params/models/mlp.yaml"),
    ]


def test_a_file_is_all_that_a_data_set_needs(files):
    Path("params/datasets/mine.yaml").write_text(
        "source: {name: image_folder}\nsample: {kind: image, resolution: [8, 8], channels: 3}\n"
    )
    edit_params(files, {"data": "mine"})
    assert load_params().dataset.source.name == "image_folder"


@pytest.mark.parametrize("name", ["v1.0", "o'brien", "a b", "a:b"])
def test_names_of_files_are_names_of_folders_and_models(files, name):
    file = Path(f"params/datasets/{name}.yaml")
    file.write_text(Path("params/datasets/digits.yaml").read_text())
    with pytest.raises(ConfigError) as caught:
        load_params()
    assert str(caught.value) == f"{file}: a name is made of letters, digits, _ and - (found {name!r})"


def test_what_editors_leave_is_no_data_set(files):
    for name in (".digits.yaml", "digits.yaml~", ".digits.yaml.swp", "notes.txt"):
        Path("params/datasets", name).write_text("a: [")
    assert load_params() == load_params(ROOT / "params.yaml")


@pytest.mark.parametrize("section", ["datasets", "models", "presets"])
def test_sections_that_have_moved_are_said_to_be_files(files, section):
    with Path("params.yaml").open("a") as file:
        file.write(f"{section}: {{}}\n")
    with pytest.raises(ConfigError) as caught:
        load_params()
    assert str(caught.value) == f"params.yaml: {section}: each is a file now: params/{section}/NAME.yaml"


def test_unreadable_files(files):
    with pytest.raises(ConfigError, match=r"^absent\.yaml: .*No such file"):
        load_params("absent.yaml")
    Path("bad.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError, match=r"^bad\.yaml: "):
        load_params("bad.yaml")
    Path("params/models/bad.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError, match=r"^params/models/bad\.yaml: "):
        load_params()
    Path("params/models/bad.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"^params/models/bad\.yaml: expected a mapping, found NoneType$"):
        load_params()
    shutil.rmtree("params/models")
    with pytest.raises(ConfigError, match=r"^params/models: no such folder; it holds a file for each of the models$"):
        load_params()


def test_numbers_may_be_written_as_people_write_them(files):
    file = Path("params/models/dcgan.yaml")
    file.write_text(file.read_text().replace("lr: 0.001", "lr: 1e-3"))
    assert load_params().game.generator.lr == 1e-3


def test_what_was_chosen_is_all_that_is_left(params):
    used = parse_params(params.model_copy(update={"model": "mlp", "preset": "wgan_gp"}).chosen())
    assert (list(used.datasets), list(used.models), used.presets) == (["digits"], ["mlp"], {"wgan_gp": {}})
    assert used.game == params.model_copy(update={"model": "mlp", "preset": "wgan_gp"}).game
    assert used.chosen() == parse_params(used.chosen()).chosen()


def test_params_are_frozen_and_survive_json(params):
    with pytest.raises(ValueError, match="frozen"):
        params.seed = 3
    assert parse_params(params.model_dump(mode="json")) == params


def test_options_of_a_penalty_are_the_arguments_of_its_class():
    said = {"r1_approx": {"weight": 2, "batch_shrink": 4}, "lecam": {"weight": 1, "decay": 0.5}, "r1": {"weight": 3}}
    params = parse_params(changed("models.dcgan.penalties", said))
    assert [penalty.options for penalty in params.game.penalties.values()] == [
        {"sigma": 0.01, "batch_shrink": 4},
        {"decay": 0.5},
        {},
    ]
    assert parse_params(params.model_dump(mode="json")) == params
    assert override(params, {"penalties.r1_approx.sigma": 0.5}).game.penalties["r1_approx"].options["sigma"] == 0.5


def test_override():
    params = parse_params(SHIPPED)
    new = override(params, {"generator.lr": 0.5, "network.width": 7, "penalties.r1.weight": 9})
    assert (new.game.generator.lr, new.game.network.width, new.game.penalties["r1"].weight) == (0.5, 7, 9)
    assert new.game.discriminator == params.game.discriminator
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        override(params, {"network.widht": 7})
    with pytest.raises(ConfigError, match=r"no section 'generetor'.*did you mean 'generator'"):
        override(params, {"generetor.lr": 7})
    with pytest.raises(ConfigError, match="greater than 0"):
        override(params, {"network.width": 0})


def test_no_parameter_has_a_name_that_dvcs_run_cache_overlooks():
    """DVC leaves `size` and `nfiles` out of a run's key wherever they stand (github.com/treeverse/dvc/issues/10296), so
    what a change of such a parameter should run again would come, stale, out of the cache."""

    def keys(node):
        if isinstance(node, dict):
            for key, value in node.items():
                yield key
                yield from keys(value)

    assert not {"size", "nfiles"} & set(keys(load_params(ROOT / "params.yaml").model_dump(mode="json")))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_workers", "atuo", "expected auto or a whole number, or [least, most] (found 'atuo')"),
        ("num_workers", -1, "expected auto or a whole number, or [least, most] (found -1)"),
        ("gpus_per_worker", 1.5, "expected auto or a number from 0 to 1 (found 1.5)"),
    ],
)
def test_what_is_neither_auto_nor_a_number_is_refused_in_one_line(key, value, message):
    with pytest.raises(ConfigError) as error:
        parse_params(changed(f"scale.{key}", value))
    assert str(error.value) == f"params.yaml: scale.{key}: {message}"


def test_numbers_of_workers_and_gpus_may_be_set():
    scale = parse_params(changed("scale.num_workers", 3)).scale
    assert (scale.num_workers, scale.min_workers, scale.gpus_per_worker) == (3, 3, "auto")
    scale = parse_params(changed("scale.gpus_per_worker", 0.5)).scale
    assert (scale.num_workers, scale.min_workers, scale.gpus_per_worker) == ("auto", 1, 0.5)


@pytest.mark.parametrize(("samples", "fits"), [(0, True), (1, False), (9, False), (10, True)])
def test_quality_is_judged_of_none_or_of_enough(samples, fits):
    if fits:
        assert TrainConfig(kimg=1, quality_samples=samples).quality_samples == samples
    else:
        with pytest.raises(ValueError, match="expected 0, to judge none, or at least 10"):
            TrainConfig(kimg=1, quality_samples=samples)


@pytest.mark.parametrize("text", ["data: 2024-13-45", "seed: !!int foo", "amp: !!bool foo", "x: " + "[" * 5000])
def test_what_yaml_cannot_hold_is_one_line(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=r"^.*params\.yaml: not YAML that can be read: ") as said:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(said.value)


def test_a_feature_space_is_called_by_a_name():
    with pytest.raises(ConfigError, match=r"reference\.spaces\.1: 1 is not a feature space"):
        parse_params(changed("reference.spaces", {1: {}}))
