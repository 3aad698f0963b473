#pragma once

/// The legend of the shape suffixes used on tensors throughout the library (`x_BTD` is [batch, position, d_model]).
///
///     B  batch          T  position (query)   S  key position     D  d_model       H  query heads
///     G  key heads      K  d_head             M  d_mlp            V  d_vocab       F  sae features
///     N  rows of any    R  query heads per key head (H = G * R)   L  layers
