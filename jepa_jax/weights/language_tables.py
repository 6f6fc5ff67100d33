"""Tables of language models: Llama's and Qwen2's rows. (reference: video_qa §3.3)"""

from __future__ import annotations

from jepa_jax.weights.tables import Rule, Table, affine

_LAYER = 'model.layers.{i}'


def _weight(name: str, path: str, pattern: str = 'o i -> i o', **more):
    return (Rule(f'{name}.weight', path, pattern, **more),)


# Llama and Qwen2; of biases those of q, k and v, which Qwen2 has (reference: video_qa §3.3)
DECODER = (
    *_weight('model.embed_tokens', 'embed_tokens/embedding', 'v d -> v d'),
    *_weight(f'{_LAYER}.input_layernorm', 'blocks/norm1/scale', 'd -> d'),
    *(r for n in 'qkv' for r in affine(f'{_LAYER}.self_attn.{n}_proj', f'blocks/attn/{n}')),
    *_weight(f'{_LAYER}.self_attn.o_proj', 'blocks/attn/o/kernel'),
    *_weight(f'{_LAYER}.post_attention_layernorm', 'blocks/norm2/scale', 'd -> d'),
    *(
        r
        for n in ('gate', 'up', 'down')
        for r in _weight(f'{_LAYER}.mlp.{n}_proj', f'blocks/mlp/{n}/kernel')
    ),
    *_weight('model.norm', 'norm/scale', 'd -> d'),
)
HEAD = _weight('lm_head', 'head/kernel')
TIED_HEAD = (Rule('lm_head.weight', None, '', why='tied: the embedding makes the logits'),)


def hf_decoder(config) -> Table:
    return (*DECODER, *(TIED_HEAD if config.tied else HEAD)), {}
