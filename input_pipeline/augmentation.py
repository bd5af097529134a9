"""Random changes of texts, drawn anew for each example in each epoch.

Here: deletion of characters, and insertion of punctuation (AEDA, 2108.13230), in the TensorFlow
graph on a batch of texts. Not here: tokens, or anything random in the model. Called by pipeline.py
while it builds its graph. What happens to a text is a function of (seed, epoch, example id) alone:
the batch that it is in, its place there and the batch size change nothing.
"""

from input_pipeline.lazy import tf

PUNCTUATION = ("，", "。", "；", "：", "？", "！")
_STREAMS = {"deletion": 1, "insertion": 2, "mark": 3}  # independent draws for one character


def augment(
    texts_B: "tf.Tensor",
    ids_B: "tf.Tensor",
    epochs_B: "tf.Tensor",
    *,
    seed: int,
    deletion_rate: float,
    punctuation_rate: float,
) -> "tf.Tensor":
    """Deletes characters and inserts punctuation marks.

    Args:
        texts_B: UTF-8 strings.
        ids_B: int64 ids of the examples.
        epochs_B: int64 epochs that they are drawn in.
        seed: the run's seed.
        deletion_rate: probability that a character is left out. One always stays.
        punctuation_rate: probability that a mark is put before a character.

    Returns:
        Strings [B].
    """
    characters = tf.strings.unicode_split(texts_B, "UTF-8")  # ragged [B, characters]
    keys_B = tf.cast(ids_B, tf.uint64)
    for part in (tf.cast(epochs_B, tf.uint64), tf.constant(seed, tf.uint64)):
        keys_B = _mix(keys_B) ^ part
    rows, places = characters.value_rowids(), tf.ragged.range(characters.row_lengths()).values
    keys = _mix(tf.gather(keys_B, rows)) + tf.cast(places, tf.uint64)

    def uniform(stream: str) -> "tf.Tensor":
        """Returns float64 in [0, 1), one per character."""
        bits = _mix(keys ^ tf.constant(_STREAMS[stream] << 48, tf.uint64))
        return tf.cast(_shift(bits, 11), tf.float64) / 2.0**53

    pieces = characters.values
    if deletion_rate:
        draws = uniform("deletion")
        best_B = tf.math.unsorted_segment_max(draws, rows, tf.shape(texts_B)[0])
        keep = draws >= tf.minimum(tf.constant(deletion_rate, tf.float64), tf.gather(best_B, rows))
        pieces = tf.where(keep, pieces, "")
    if punctuation_rate:
        index = tf.cast(uniform("mark") * len(PUNCTUATION), tf.int32)
        marks = tf.gather(tf.constant(PUNCTUATION), index)
        pieces = tf.where(uniform("insertion") < punctuation_rate, marks + pieces, pieces)
    return tf.strings.reduce_join(characters.with_values(pieces), axis=-1)


def _mix(x: "tf.Tensor") -> "tf.Tensor":
    """Hashes uint64 to uint64: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = x + tf.constant(0x9E3779B97F4A7C15, tf.uint64)
    x = (x ^ _shift(x, 30)) * tf.constant(0xBF58476D1CE4E5B9, tf.uint64)
    x = (x ^ _shift(x, 27)) * tf.constant(0x94D049BB133111EB, tf.uint64)
    return x ^ _shift(x, 31)


def _shift(x: "tf.Tensor", bits: int) -> "tf.Tensor":
    return tf.bitwise.right_shift(x, tf.constant(bits, tf.uint64))
