"""transformers 5.23.0: positions that a Marian freezes are trained after from_pretrained.

Expected: model.encoder.embed_positions.weight.requires_grad is the same, False, however the model was made.
Seen: False after from_config, True after from_pretrained: the file has no sinusoids, and what takes their place
(modeling_utils.py, _move_missing_keys_from_meta_to_device) is a parameter that requires a gradient.
"""

import tempfile

from transformers import AutoModelForSeq2SeqLM, MarianConfig

config = MarianConfig(
    vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=8, pad_token_id=1, decoder_start_token_id=0,
)  # fmt: skip
made = AutoModelForSeq2SeqLM.from_config(config)
with tempfile.TemporaryDirectory() as folder:
    made.save_pretrained(folder)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(folder)
for what, model in (("from_config", made), ("from_pretrained", loaded)):
    print(f"{what}: requires_grad {model.model.encoder.embed_positions.weight.requires_grad}")
