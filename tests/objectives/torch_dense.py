"""V-JEPA 2.1's training step in plain PyTorch, written from the facts (reference: vjepa2_1 §3-§6,
§9.1): functions of dicts of tensors by the original's names."""

import torch
import torch.nn.functional as F


def turn(x, ids, h, w):
    """x [B, A, N, C] by the positions of ids [B, N] on a grid h x w, which span 0 to 15."""
    c = 2 * (x.shape[-1] // 3 // 2)
    rows, columns = ids % (h * w) // w, ids % w
    axes = (ids // (h * w), rows * (15 / (h - 1)), columns * (15 / (w - 1)))
    omega = 10000.0 ** (-torch.arange(c // 2, dtype=x.dtype) / (c / 2))
    done = []
    for k, at in enumerate(axes):
        angle = (at[..., None] * omega)[:, None]
        a, b = x[..., k * c : (k + 1) * c : 2], x[..., k * c + 1 : (k + 1) * c : 2]
        pair = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
        done.append(torch.stack(pair, -1).flatten(-2))
    return torch.cat([*done, x[..., 3 * c :]], -1)


def norm(p, name, x, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], p[f'{name}.weight'], p[f'{name}.bias'], eps)


def linear(p, name, x):
    return F.linear(x, p[f'{name}.weight'], p[f'{name}.bias'])


def block(p, name, x, heads, ids, h, w):
    B, N, D = x.shape
    qkv = linear(p, f'{name}.attn.qkv', norm(p, f'{name}.norm1', x))
    q, k, v = qkv.reshape(B, N, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
    q, k = turn(q, ids, h, w), turn(k, ids, h, w)
    scores = q @ k.transpose(-1, -2) / (D // heads) ** 0.5
    x = x + linear(p, f'{name}.attn.proj', (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    hidden = F.gelu(linear(p, f'{name}.mlp.fc1', norm(p, f'{name}.norm2', x)))
    return x + linear(p, f'{name}.mlp.fc2', hidden)


def encoder(p, clip, ids, *, levels, heads, patch):
    """clip [B, 3, T, H, W] and ids [B, K] of tokens, None: all -> the levels, each [B, K, D]."""
    image = clip.shape[2] == 1
    name = 'patch_embed_img.proj' if image else 'patch_embed.proj'
    weight = p[f'{name}.weight']
    x = F.conv3d(clip, weight, p[f'{name}.bias'], stride=weight.shape[2:])
    h, w = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2) + p['img_mod_embed' if image else 'video_mod_embed']
    if ids is None:
        ids = torch.arange(x.shape[1]).expand(len(x), -1)
    x = pick(x, ids)
    kept = []
    for i in range(max(levels) + 1):
        x = block(p, f'blocks.{i}', x, heads, ids, h, w)
        kept += [norm(p, f'norms_block.{j}', x) for j, level in enumerate(levels) if level == i]
    return kept


def pick(x, ids):
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


def predictor(p, x, context, target, image, *, depth, heads, side):
    if 'predictor_embed.weight' in p:  # of one level
        x = linear(p, 'predictor_embed', x)
    else:
        x = linear(p, 'predictor_embed.2', F.gelu(linear(p, 'predictor_embed.0', x)))
    x = torch.cat([x, p['mask_tokens.0'].expand(*target.shape, -1)], 1)
    x = x + p['img_mod_embed' if image else 'video_mod_embed']
    ids = torch.cat([context, target], 1)
    for i in range(depth):
        x = block(p, f'predictor_blocks.{i}', x, heads, ids, side, side)
    x = norm(p, 'predictor_norm', x)
    K = context.shape[1]
    return linear(p, 'predictor_proj', x[:, K:]), linear(p, 'predictor_proj_context', x[:, :K])


def loss(online, target, predict, groups, weight, image_share, encoding, predicting, taught=None):
    """groups: (clip, masks of (context, target)); the mean over each kind's masks, weighed. taught:
    the `encoding` of a target that is a teacher: last levels alone (reference: §9.6)."""
    kinds, kept = {True: [], False: []}, slice(-1 if taught else 0, None)
    for clip, masks in groups:
        image, side = clip.shape[2] == 1, predicting['side']
        with torch.no_grad():
            y = encoder(target, clip, None, **(taught or encoding))[kept]
            y = torch.cat([F.layer_norm(x, x.shape[-1:]) for x in y], -1)
        for context, hidden in masks:
            x = torch.cat(encoder(online, clip, context, **encoding)[kept], -1)
            z, z_context = predictor(predict, x, context, hidden, image, **predicting)
            at = [torch.stack([i // side**2, i // side % side, i % side], -1).to(x.dtype)
                  for i in (context, hidden)]  # fmt: skip
            near = torch.cdist(*at).min(-1).values
            errors = (z_context - pick(y, context)).abs() / near.sqrt()[..., None]
            kinds[image].append((z - pick(y, hidden)).abs().mean() + weight * errors.mean())
    images, videos = (sum(parts) / len(parts) for parts in (kinds[True], kinds[False]))
    return image_share * images + (1 - image_share) * videos
