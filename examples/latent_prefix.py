"""A small language model with a learned perturbation, compared out of its domain."""

from eestim.llm import (
    Brier,
    Documents,
    LatentPrefixLM,
    LowRank,
    NoiseAveraged,
    Split,
    byte_model,
    byte_tokenizer,
    corpora,
    evaluate,
    fit,
)

tokenizer = byte_tokenizer()


def documents(corpus):
    """Cut each text to its first bytes and tokenize; one document is one unit."""
    short = corpus.truncated(300)
    return Documents.from_texts(short.texts, tokenizer, 64, short.names)


prose, held_out = corpora.split(corpora.documentation(modules=10), held_out=40)
training = documents(prose)
sets = {
    "documentation": documents(held_out),
    "code": documents(corpora.code(modules=10)),
}

options = {"steps": 15, "batch_size": 4, "learning_rate": 4e-3}
plain = LatentPrefixLM(byte_model(64, width=32, layers=2), None, tokenizer)
fit(plain, training, NoiseAveraged(), draws=1, **options)

latent = LatentPrefixLM(
    byte_model(64, width=32, layers=2), LowRank(32, rank=4, size=0.05), tokenizer
)
unbiased = Split(base=NoiseAveraged(), perturbation=Brier())
fit(latent, training, unbiased, draws=3, **options)

found = evaluate({"plain": plain, "latent": latent}, sets, training=training, draws=3)
table = found.differences.query("measure == 'bits per byte'")
columns = ["corpus", "model", "difference", "lower", "upper", "documents", "dof"]
print(table[columns].round(3).to_string(index=False))
