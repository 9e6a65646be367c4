"""f-AnoGAN against an isolation forest and the residual of PCA, on the same examples: the area under the ROC curve.

    apt-get install dataset-fashion-mnist          # one class of Fashion-MNIST is normal, nine are anomalies
    apt-get download r-cran-mlbench && dpkg -x r-cran-mlbench_*.deb mlbench && pip install rdata        # tables
    python tests/bench/anomalies.py fashion [--classes 0 1 2] [--seeds 0] [--kimg 40] [--fit-kimg 50]
    python tests/bench/anomalies.py tables --mlbench mlbench [--seeds 0 1 2]

Normal examples are split by content (`prepare`); all methods learn from the same training examples and are judged on
the same test examples and anomalies (2,000 of these, at most). Networks have the settings of
params/models/f_anogan.yaml but for what the arguments say. `paper` is the residual of Schlegl et al., from the same
networks. PCA keeps 95 % of the variance. In tables, numbers have one mode each, and the forest and PCA see the columns
standardised.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from ganlib import shards
from ganlib.config import DatasetConfig, load_params, override
from ganlib.export import load_generator
from ganlib.trainer import train
from pipelines.prepare import prepare

FASHION = Path("/usr/share/datasets/fashion-mnist")
ANOMALIES = 2000  # judged, at most
TABLES = {  # the column of classes, and those that are normal: the larger ones (Satellite as in the ODDS collection)
    "Satellite": ("classes", ["red soil", "very damp grey soil", "grey soil"]),
    "Ionosphere": ("Class", ["good"]),
}
METHODS = ("ours", "paper", "forest", "PCA")


def areas(dataset, raw, changes, train_changes, seed):
    """`{method: AUROC}` and the seconds that ours took to learn."""
    params = load_params(Path(__file__).parents[2] / "params.yaml").model_copy(
        update={"model": "f_anogan", "seed": seed}
    )
    budget = {"quality_samples": 0, "report_kimg": 1000, "checkpoint_kimg": 1000, **train_changes}
    params = override(params.model_copy(update={"train": params.train.model_copy(update=budget)}), changes)
    with tempfile.TemporaryDirectory() as folder:
        out, kept = Path(folder) / "prepared", Path(folder) / "trained"
        prepare(DatasetConfig.model_validate(dataset), raw, out)
        spec, began = shards.read_spec(out), time.process_time()
        train(params, lambda row, made: made and shutil.copytree(made, kept, dirs_exist_ok=True), prepared=out)
        seconds = time.process_time() - began
        stored = {
            split: shards.read(out, split, ANOMALIES if split == "anomalies" else None)["sample"]
            for split in spec.counts
        }
        generator = load_generator(kept / "generator")
        rows = {name: spec.kind.decode(spec.sample, "sample", part) for name, part in stored.items()}
        anomalous = np.repeat([False, True], [len(rows["test"]), len(rows["anomalies"])])
        judged = torch.cat([rows["test"], rows["anomalies"]])
        answers = generator.answer({"sample": judged})
    scores = {"ours": answers["score"].numpy(), "paper": answers["residual"].numpy()}
    known, others = rows["train"].flatten(1).numpy(), judged.flatten(1).numpy()
    if judged.dim() == 2:
        scaler = StandardScaler().fit(known)
        known, others = scaler.transform(known), scaler.transform(others)
    scores["forest"] = -IsolationForest(n_estimators=200, random_state=seed).fit(known).score_samples(others)
    pca = PCA(0.95, svd_solver="full").fit(known)
    scores["PCA"] = np.square(others - pca.inverse_transform(pca.transform(others))).sum(1)
    return {name: roc_auc_score(anomalous, score) for name, score in scores.items()}, seconds


def idx(path):
    """The array in a gzipped IDX file of bytes."""
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content[4 : 4 + 4 * content[3]], ">u4")
    return np.frombuffer(content[4 + 4 * content[3] :], np.uint8).reshape(shape)


def fashion(args):
    """All 7,000 images of a class, and 2,000 of the others, in a folder of IDX files."""
    images, labels = (
        np.concatenate([idx(FASHION / f"{split}-{kind}-ubyte.gz") for split in ("train", "t10k")])
        for kind in ("images-idx3", "labels-idx1")
    )
    for number in args.classes:
        others = np.random.default_rng(0).permutation(np.flatnonzero(labels != number))[:ANOMALIES]
        rows = np.concatenate([np.flatnonzero(labels == number), others])
        raw = Path(tempfile.mkdtemp())
        for name, array in (("images-idx3", images[rows]), ("labels-idx1", labels[rows])):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (raw / f"all-{name}-ubyte").write_bytes(head + array.tobytes())
        sample = {"kind": "image", "resolution": [28, 28], "channels": 1}
        yield str(number), {"source": {"name": "idx"}, "sample": sample, "normal": [number], "test_share": 1 / 7}, raw


def tables(args):
    import rdata

    for name, (label, normal) in TABLES.items():
        (found,) = (args.mlbench / "usr").rglob(f"{name}.rda")
        table = rdata.read_rda(found)[name]
        raw = Path(tempfile.mkdtemp())
        table.to_csv(raw / "table.csv", index=False)
        sample = {"kind": "table", "max_modes": 1, "max_values": 3}
        source = {"name": "csv", "label": label}
        yield name, {"source": source, "sample": sample, "normal": normal, "test_share": 0.3}, raw


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["fashion", "tables"])
    parser.add_argument("--classes", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kimg", type=float, default=40)
    parser.add_argument("--fit-kimg", type=float, default=50)
    parser.add_argument("--mlbench", type=Path, default=Path("mlbench"))
    parser.add_argument("--set", nargs="*", default=[], help="key=value of the model's section")
    args = parser.parse_args()
    torch.set_num_threads(1)
    changes = {"fits.encoder.kimg": args.fit_kimg}
    for one in args.set:
        key, _, value = one.partition("=")
        changes[key] = float(value) if "." in value or "e" in value else int(value)
    print(f"{'normal':12} seed " + " ".join(f"{name:>8}" for name in METHODS) + "  CPU s", flush=True)
    found = []
    for name, dataset, raw in {"fashion": fashion, "tables": tables}[args.data](args):
        for seed in args.seeds:
            figures, seconds = areas(dataset, raw, changes, {"kimg": args.kimg}, seed)
            found.append([figures[method] for method in METHODS])
            print(
                f"{name:12} {seed:4} " + " ".join(f"{figures[m]:8.4f}" for m in METHODS) + f" {seconds:6.0f}",
                flush=True,
            )
    print(f"{'mean':17} " + " ".join(f"{value:8.4f}" for value in np.mean(found, 0)))


if __name__ == "__main__":
    main()
