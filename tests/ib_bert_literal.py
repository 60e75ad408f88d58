"""IB-BERT once more, literally: padded (B, T), one matrix after the other, from the weights alone.

No library runs this model, so the project's own is held against a second transcription, written in
the manner of the original TensorFlow description (MobileBERT's repository, inverted-bottleneck
teacher) and sharing no code with it.
"""

import math

import torch


def layer_norm(x, weights, name, eps):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return (x - mean) / torch.sqrt(variance + eps) * scale + shift


def dense(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x):  # as in MobileBERT's modeling.py
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def ib_bert(weights, ids, types, mask, n_layers, n_heads, eps=1e-12):
    """Hidden states, embeddings first, each (B, T, C); logits (B, T, V).

    Args:
        weights: the state dict of a masked-LM model.
        ids:     (B, T) token ids.
        types:   (B, T) token types, 0 or 1.
        mask:    (B, T) bool, True = real token.
    """
    B, T = ids.shape
    e = weights["encoder.embeddings.token.weight"][ids] * mask[..., None]
    zeros = torch.zeros(B, 1, e.shape[-1], dtype=e.dtype)
    following = torch.cat([e[:, 1:], zeros], 1)
    previous = torch.cat([zeros, e[:, :-1]], 1)
    x = dense(torch.cat([following, e, previous], -1), weights, "encoder.embeddings.project")
    x = x + weights["encoder.embeddings.position.weight"][:T]
    x = x + weights["encoder.embeddings.segment.weight"][types]
    x = layer_norm(x, weights, "encoder.embeddings.norm", eps)
    states = [x]
    for l in range(n_layers):
        name = f"encoder.layers.{l}"
        inner = layer_norm(
            dense(x, weights, f"{name}.enter.dense"), weights, f"{name}.enter.norm", eps
        )
        heads = {}
        for part in ("query", "key", "value"):  # each from the stream between the layers
            y = dense(x, weights, f"{name}.attention.{part}")  # (B, T, C_intra)
            heads[part] = y.view(B, T, n_heads, -1).permute(0, 2, 1, 3)
        d = heads["query"].shape[-1]
        scores = heads["query"] @ heads["key"].transpose(-1, -2) / math.sqrt(d)  # (B, H, T, T)
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        context = torch.softmax(scores, -1) @ heads["value"]
        context = context.permute(0, 2, 1, 3).reshape(B, T, -1)
        context = dense(context, weights, f"{name}.attention.output")
        inner = layer_norm(inner + context, weights, f"{name}.attention_norm", eps)
        up = gelu(dense(inner, weights, f"{name}.ffns.0.ffn.up"))
        down = dense(up, weights, f"{name}.ffns.0.ffn.down")
        inner = layer_norm(inner + down, weights, f"{name}.ffns.0.norm", eps)
        x = layer_norm(
            x + dense(inner, weights, f"{name}.leave"), weights, f"{name}.output_norm", eps
        )
        states.append(x)
    h = layer_norm(gelu(dense(x, weights, "head.transform")), weights, "head.norm", eps)
    table = weights["encoder.embeddings.token.weight"]
    matrix = torch.cat([table.T, weights["head.extra.weight"]], 0)  # (C, V)
    return states, h @ matrix + weights["head.bias"]
