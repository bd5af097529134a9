"""Properties of the fitted features: what they learn from, what they keep, how they are stored."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import safetensors.numpy
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import PowerTransformer, QuantileTransformer

from configs.common import get_config
from input_pipeline.examples import Examples, Ragged, object_array
from input_pipeline.features import features as features_module
from input_pipeline.features.features import load

EXTRACTORS = ("lengths", "characters", "punctuation", "character_tfidf", "word_tfidf", "values")
TRANSFORMATIONS = ("none", "log", "power", "quantile")
SCALINGS = ("none", "standard", "min_max", "robust")
SELECTIONS = ("none", "variance", "chi2", "mutual_information", "model")


def fit(train, features, *, value_names=("0", "1")):
    return features_module.fit(train, features, value_names=value_names)


def config_of(**knobs):
    features = get_config().features
    features.update({"svd": 8, "extractors": EXTRACTORS} | knobs)
    return features


def examples_of(count, seed, *, pairs=False):
    """Texts of random characters, whose label one character, one value and the length tell."""
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, 2, count).astype(np.int32)
    labels_N[0], labels_N[-1] = 0, 1

    def texts():
        return [
            "".join(rng.choice(list("这家店的东西，我买了！a1"), rng.integers(3, 9)))
            for _ in labels_N
        ]

    texts_N = [text + ("好！", "坏")[label] for text, label in zip(texts(), labels_N, strict=True)]
    values_NxK = np.stack([rng.normal(size=count), labels_N + rng.normal(size=count) / 9], axis=1)
    pairs_N = texts() if pairs else None
    return Examples(
        object_array(texts_N),
        labels_N,
        np.arange(count),
        pairs_N=object_array(pairs_N) if pairs else None,
        words=words_of(texts_N),
        pair_words=words_of(pairs_N) if pairs else None,
        values_NxK=values_NxK.astype(np.float32),
    )


def words_of(texts):
    return Ragged.of([[*range(2, len(text), 2), len(text)] for text in texts])


@pytest.fixture(scope="module")
def train():
    return examples_of(150, 0)


@pytest.fixture(scope="module")
def test():
    return examples_of(40, 1)


@pytest.fixture(scope="module")
def fitted(train):
    return fit(train, config_of(), value_names=("noise", "signal"))


@pytest.mark.parametrize(
    ("transformation", "scaling", "selection"),
    [
        *((kind, "standard", "none") for kind in TRANSFORMATIONS),
        *(("none", kind, "none") for kind in SCALINGS),
        *(("power", "robust", kind) for kind in SELECTIONS),
    ],
)
def test_stored_features_are_the_same_bit_for_bit(
    train, test, tmp_path, transformation, scaling, selection
):
    knobs = {"transformation": transformation, "scaling": scaling, "selection": selection}
    pipeline = fit(train, config_of(**knobs, max_features=20))
    features_NxK = pipeline.transform(test)
    assert features_NxK.dtype == np.float32
    assert features_NxK.shape == (40, len(pipeline.names))
    assert np.isfinite(features_NxK).all()
    assert selection == "none" or 0 < len(pipeline.names) <= 20
    pipeline.save(tmp_path / "features")
    loaded = load(tmp_path / "features")
    np.testing.assert_array_equal(loaded.transform(test), features_NxK)
    assert (loaded.names, loaded.prose()) == (pipeline.names, pipeline.prose())
    assert loaded.fingerprint == pipeline.fingerprint
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "features").read_bytes()


def test_the_same_data_and_settings_give_the_same_fingerprint(train, fitted):
    again = fit(train, config_of(), value_names=("noise", "signal"))
    assert again.fingerprint == fitted.fingerprint
    others = [
        fit(train, config_of(scaling="robust"), value_names=("noise", "signal")),
        fit(train.first(149), config_of(), value_names=("noise", "signal")),
    ]
    assert len({fitted.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_applying_features_changes_nothing_and_sees_no_other_examples(test, fitted):
    before, features_NxK = fitted.fingerprint, fitted.transform(test)
    extreme = dataclasses.replace(test, values_NxK=test.values_NxK * 1e6)
    fitted.transform(extreme)
    np.testing.assert_array_equal(fitted.transform(test.first(5)), features_NxK[:5])
    del fitted.__dict__["fingerprint"]
    assert fitted.fingerprint == before


def test_standard_features_of_the_training_split_have_mean_0_and_deviation_1(train, fitted):
    features_NxK = fitted.transform(train)
    np.testing.assert_allclose(features_NxK.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(features_NxK.std(0), 1, atol=1e-3)


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_no_example_leaves_the_range_of_the_training_split(train, test, transformation):
    pipeline = fit(train, config_of(scaling="min_max", transformation=transformation))
    texts = ["！" * 3000 + "新" * 3000] * len(test)
    values_NxK = np.where(test.values_NxK > 0, 1e30, -1e30).astype(np.float32)
    extreme = Examples(
        object_array(texts), None, test.ids_N, words=words_of(texts), values_NxK=values_NxK
    )
    features_NxK = pipeline.transform(extreme)
    assert features_NxK.min() >= 0
    assert features_NxK.max() <= 1


@pytest.mark.parametrize(
    ("kind", "transformer"),
    [
        ("power", PowerTransformer(standardize=False)),
        ("quantile", QuantileTransformer(n_quantiles=100, output_distribution="normal")),
    ],
)
def test_transformations_are_those_of_scikit_learn(train, kind, transformer):
    config = config_of(extractors=("values",), transformation=kind, scaling="none")
    expected = transformer.fit_transform(train.values_NxK.astype(np.float64))
    np.testing.assert_allclose(fit(train, config).transform(train), expected, rtol=1e-5, atol=1e-6)


def test_tfidf_without_svd_keeps_the_terms_and_their_weights(train, test, monkeypatch):
    monkeypatch.setattr(features_module, "_TFIDF_TERMS", 30)
    config = config_of(extractors=("character_tfidf",), svd=0, scaling="none")
    pipeline = fit(train, config)
    options = {"analyzer": "char", "ngram_range": (1, 2), "sublinear_tf": True, "min_df": 2}
    peer = TfidfVectorizer(**options, max_features=30).fit(train.texts_N)
    highest_K = peer.transform(train.texts_N).toarray().max(axis=0)
    expected = np.minimum(peer.transform(test.texts_N).toarray(), highest_K)
    assert pipeline.names == tuple(f"character_tfidf/{t}" for t in peer.get_feature_names_out())
    np.testing.assert_allclose(pipeline.transform(test), expected, atol=1e-6)


def test_words_are_the_stored_ones(train):
    pipeline = fit(train, config_of(extractors=("word_tfidf",), svd=0))
    terms = [name.removeprefix("word_tfidf/") for name in pipeline.names]
    assert {len(term) for term in terms} == {1, 2}
    starts = (text[i : i + 2] for text in train.texts_N for i in range(0, len(text), 2))
    assert set(terms) <= set(starts)


@pytest.mark.parametrize("svd", [0, 8])
@pytest.mark.parametrize("selection", ["chi2", "mutual_information", "model"])
def test_a_selection_by_label_keeps_what_tells_the_label(train, selection, svd):
    extractors = ("values", "character_tfidf") if svd == 0 else ("values", "punctuation")
    config = config_of(extractors=extractors, svd=svd, selection=selection, max_features=4)
    names = fit(train, config, value_names=("noise", "signal")).names
    assert "values/noise" not in names
    assert "values/signal" in names or selection == "chi2"
    assert ("character_tfidf/坏" if svd == 0 else "punctuation/ends_with_！") in names


def test_variance_keeps_what_varies_most_whatever_its_unit(train):
    signs = np.where(np.arange(len(train)) % 2, 1, -1) * 1e-3
    rare = np.where(np.arange(len(train)) == 3, 1e3, 0)
    values_NxK = np.stack([rare, signs], axis=1).astype(np.float32)
    config = config_of(extractors=("values",), selection="variance", max_features=1)
    pipeline = fit(dataclasses.replace(train, values_NxK=values_NxK), config)
    assert pipeline.names == ("values/1",)


@pytest.mark.parametrize("selection", ["chi2", "mutual_information", "model"])
def test_masked_labels_are_not_seen(train, selection):
    known_N = np.arange(len(train)) < 100
    columns = np.stack([train.labels_N, np.where(known_N, 0.5, train.labels_N)], axis=1)
    columns += np.random.default_rng(0).normal(size=columns.shape) / 20
    partly = dataclasses.replace(
        train,
        labels_N=np.where(known_N, train.labels_N, -1).astype(np.int32),
        values_NxK=columns.astype(np.float32),
    )
    config = config_of(extractors=("values",), selection=selection, max_features=1)
    assert fit(partly, config).names == ("values/0",)


def test_pairs_have_features_of_both_texts_and_of_their_overlap():
    train = examples_of(120, 0, pairs=True)
    pipeline = fit(train, config_of())
    for name in (
        "lengths/words",
        "pair/lengths/words",
        "character_tfidf/svd_0",
        "pair/character_tfidf/svd_0",
        "overlap/character_tfidf",
        "overlap/jaccard_bigrams",
    ):
        assert name in pipeline.names
    same = dataclasses.replace(train, pairs_N=train.texts_N, pair_words=train.words)
    raw = fit(train, config_of(scaling="none"))
    cosine_N = raw.transform(same)[:, raw.names.index("overlap/character_tfidf")]
    index = raw.names.index("overlap/character_tfidf")
    np.testing.assert_allclose(cosine_N, raw.arrays["high_K"][index], rtol=1e-6)  # cut to it
    with pytest.raises(ValueError, match=r"have no second texts, the training split has second"):
        pipeline.transform(dataclasses.replace(train, pairs_N=None))


def test_a_few_short_texts_have_features():
    texts = object_array(["甲乙", "", "\ud83d坏"])
    few = Examples(texts, np.array([0, 1, 0], np.int32), np.arange(3))
    pipeline = fit(few, config_of(extractors=("lengths", "character_tfidf")))
    assert np.isfinite(pipeline.transform(few)).all()
    assert sum(name.startswith("character_tfidf") for name in pipeline.names) <= 2


def test_what_was_kept_is_told(train):
    pipeline = fit(train, config_of(selection="chi2", max_features=7))
    assert "Features: 7 of" in pipeline.prose()
    assert "selection chi2" in pipeline.prose()
    assert pipeline.fingerprint[:12] in pipeline.prose()


class Bomb:
    def __reduce__(self):
        return (print, ("a pickle was read",))


def test_what_is_not_such_a_file_is_refused_and_runs_nothing(tmp_path, capsys):
    path = tmp_path / "features"
    for content in (pickle.dumps(Bomb()), b"", b"PK\x03\x04", np.zeros(3).tobytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="holds no fitted features.*train again"):
            load(path)
    path.write_bytes(safetensors.numpy.save({"other": np.zeros(3)}))
    with pytest.raises(ValueError, match="holds no fitted features"):
        load(path)
    assert capsys.readouterr().out == ""
    with pytest.raises(FileNotFoundError, match="no fitted features at"):
        load(tmp_path / "none")


def test_a_changed_file_is_refused_wherever_the_change_is(fitted, tmp_path):
    path = tmp_path / "features"
    fitted.save(path)
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 60):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(bytes(flipped))
        with pytest.raises(ValueError, match="holds no fitted features"):
            load(path)
    path.write_bytes(content[:-5])
    with pytest.raises(ValueError, match="holds no fitted features"):
        load(path)


def test_features_of_another_version_are_refused(fitted, tmp_path, monkeypatch):
    fitted.save(tmp_path / "features")
    monkeypatch.setattr(features_module, "_VERSION", 2)
    with pytest.raises(ValueError, match="version 1, expected 2"):
        load(tmp_path / "features")


def test_a_lexicon_must_be_named(train):
    with pytest.raises(ValueError, match=r"config\.features\.lexicon is empty"):
        fit(train, config_of(extractors=("lexicon",)))


def test_examples_that_lack_what_features_need_are_refused(train, test, fitted):
    bare = dataclasses.replace(train, words=None, values_NxK=None)
    with pytest.raises(ValueError, match=r"config\.data\.words='jieba'"):
        fit(bare, config_of(extractors=("word_tfidf",)))
    with pytest.raises(ValueError, match=r"config\.data\.value_columns"):
        fit(bare, config_of(extractors=("values",)))
    with pytest.raises(ValueError, match=r"have no words.*config\.data\.words"):
        fitted.transform(dataclasses.replace(test, words=None))
    with pytest.raises(ValueError, match=r"have 0 columns"):
        fitted.transform(dataclasses.replace(test, values_NxK=None))
    unlabelled = dataclasses.replace(train, labels_N=None)
    with pytest.raises(ValueError, match=r"config\.features\.selection 'chi2' looks at labels"):
        fit(unlabelled, config_of(selection="chi2"))
    assert fit(unlabelled, config_of(selection="variance")).names


def test_features_that_are_all_constant_are_refused(train):
    same = dataclasses.replace(train, values_NxK=np.ones((len(train), 2), np.float32))
    for selection in SELECTIONS:
        with pytest.raises(ValueError, match=r"none of 2 features is left: 2 are constant"):
            fit(same, config_of(extractors=("values",), selection=selection))
    disjoint = object_array([chr(0x4E00 + index) for index in range(len(train))])
    apart = dataclasses.replace(train, texts_N=disjoint)
    with pytest.raises(ValueError, match=r"'character_tfidf' but the training texts share no"):
        fit(apart, config_of(extractors=("character_tfidf",)))


def test_more_than_fits_into_memory_is_refused_with_a_remedy(train, monkeypatch):
    monkeypatch.setattr(features_module, "_MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"GiB: set config\.features\.svd above 0"):
        fit(train, config_of(svd=0))
    assert fit(train, config_of(svd=0, selection="chi2", max_features=5)).names


def test_every_combination_of_choices_is_accepted(train):
    small = train.first(30)
    for choices in itertools.product(TRANSFORMATIONS[1:], SCALINGS[2:], SELECTIONS[1:]):
        knobs = dict(zip(("transformation", "scaling", "selection"), choices, strict=True))
        pipeline = fit(small, config_of(**knobs, extractors=("punctuation", "values")))
        assert np.isfinite(pipeline.transform(small)).all()
