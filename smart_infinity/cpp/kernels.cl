// The updates of recipes.inc and tile.cpp in OpenCL C 1.2, to the same bits: a product is fused
// exactly where fma() is written, division and square root are rounded correctly (the host refuses
// a device that cannot), and 16-bit floats are converted by integer arithmetic, as in half.hpp.
//
// Built for one optimizer by -D ADAM, ADAGRAD or SGD, and -D ARRAYS=1 to 3 (parameters and
// moments). A work-group of GROUP items steps a run of at most RUN elements, all by the same
// settings; an item steps eight, as vectors: compilers do not have to find out that they can.

#pragma OPENCL FP_CONTRACT OFF

#define RUN (8 * GROUP)

typedef struct {
  uint begin, end;  // elements of the tile
  uint settings;    // which of them; SKIP: the elements stay, and are only handed out
  uint rest;        // kernels::Recipe
} Run;

#define SKIP 0xFFFFFFFFu

// Types of numbers that cross the link, by their numbers in types.hpp.
#define FLOAT32 0
#define BFLOAT16 1
#define FLOAT16 2

// Of a step, 16 floats in this order (opencl_update.cpp packs them); flags are 0 or 1.
typedef struct {
  float unscale, clip, maximize, weight_decay, decay, lerp, beta2, fresh2;
  float bias2_sqrt, eps, minus_step, momentum, undamped, minus_lr, nesterov, first;
} Settings;

// ------------------------------------------------------------------ 16-bit floats

float8 bf16_to_float(uint8 bits) { return as_float8(bits << 16); }

uint8 float_to_bf16(float8 value) {
  const uint8 bits = as_uint8(value);
  const uint8 rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return select(rounded, (uint8)0x7FC0u, (bits & 0x7FFFFFFFu) > 0x7F800000u);
}

float8 f16_to_float(uint8 bits) {
  const uint8 sign = (bits & 0x8000u) << 16;
  const uint8 exponent = (bits >> 10) & 0x1Fu;
  const uint8 mantissa = bits & 0x3FFu;
  const uint8 subnormal = as_uint8(convert_float8(mantissa) * 0x1p-24f);
  const uint8 normal = ((exponent + 112u) << 23) | (mantissa << 13);
  const uint8 quiet = select((uint8)0x400000u, (uint8)0u, mantissa == 0u);
  const uint8 special = 0x7F800000u | quiet | (mantissa << 13);
  const uint8 magnitude =
      select(select(normal, special, exponent == 0x1Fu), subnormal, exponent == 0u);
  return as_float8(sign | magnitude);
}

uint8 float_to_f16(float8 value) {
  const uint8 bits = as_uint8(value);
  const uint8 sign = (bits >> 16) & 0x8000u;
  const uint8 magnitude = bits & 0x7FFFFFFFu;
  const uint8 nan = 0x7E00u | ((magnitude >> 13) & 0x3FFu);
  const uint8 subnormal = as_uint8(as_float8(magnitude) + 0.5f) - 0x3F000000u;
  uint8 half_ = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  half_ = select(half_, subnormal, magnitude < 0x38800000u);
  half_ = select(half_, (uint8)0x7C00u, magnitude >= 0x477FF000u);
  return sign | select(half_, nan, magnitude > 0x7F800000u);
}

// ------------------------------------------------------------------ eight numbers

// The first `count` of eight; the others are 0.
float8 load(const __global float* from, uint count) {
  if (count == 8) return vload8(0, from);
  float eight[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  for (uint j = 0; j < count; ++j) eight[j] = from[j];
  return vload8(0, eight);
}

void store(float8 values, __global float* to, uint count) {
  if (count == 8) {
    vstore8(values, 0, to);
    return;
  }
  float eight[8];
  vstore8(values, 0, eight);
  for (uint j = 0; j < count; ++j) to[j] = eight[j];
}

float8 to_float(uint type, uint8 bits) {
  return type == BFLOAT16 ? bf16_to_float(bits) : f16_to_float(bits);
}

float8 load_as(uint type, const __global uchar* bytes, uint i, uint count) {
  if (type == FLOAT32) return load((const __global float*)bytes + i, count);
  const __global ushort* from = (const __global ushort*)bytes + i;
  if (count == 8) return to_float(type, convert_uint8(vload8(0, from)));
  ushort eight[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  for (uint j = 0; j < count; ++j) eight[j] = from[j];
  return to_float(type, convert_uint8(vload8(0, eight)));
}

void store_halves(uint type, float8 values, __global ushort* to, uint count) {
  const ushort8 halves =
      convert_ushort8(type == BFLOAT16 ? float_to_bf16(values) : float_to_f16(values));
  if (count == 8) {
    vstore8(halves, 0, to);
    return;
  }
  ushort eight[8];
  vstore8(halves, 0, eight);
  for (uint j = 0; j < count; ++j) to[j] = eight[j];
}

// ------------------------------------------------------------------ updates

float8 prepared(float8 g, float8 p, const __global Settings* h) {
  g = g * h->unscale * h->clip;
  if (h->maximize != 0) g = g * -1.0f;
  if (h->weight_decay != 0) g = fma(p, (float8)h->weight_decay, g);
  return g;
}

#if defined(ADAM)
float8 stepped(float8 p, float8 g, const __global Settings* h, bool rest, float8* first,
               float8* second) {
  float8 m = *first, v = *second;
  p = p * h->decay;
  g = prepared(g, p, h);
  if (h->lerp < 0.5f) {
    m = fma((float8)h->lerp, g - m, m);
  } else {
    m = fma((float8)(h->lerp - 1.0f), g - m, g);
  }
  const float8 scaled = h->fresh2 * g;
  if (rest) {
    v = fma(v, (float8)h->beta2, scaled * g);
  } else {
    v = fma(scaled, g, v * h->beta2);
  }
  const float8 spread = sqrt(v) / h->bias2_sqrt + h->eps;
  *first = m;
  *second = v;
  return p + h->minus_step * m / spread;
}
#elif defined(ADAGRAD)
float8 stepped(float8 p, float8 g, const __global Settings* h, bool rest, float8* first,
               float8* second) {
  g = prepared(g, p, h);
  *first = fma(g, g, *first);
  return p - h->minus_step * g / (sqrt(*first) + h->eps);
}
#elif defined(SGD)
float8 stepped(float8 p, float8 g, const __global Settings* h, bool rest, float8* first,
               float8* second) {
  g = prepared(g, p, h);
#if ARRAYS > 1
  float8 b = g;
  if (h->first == 0) {
    b = *first;
    if (rest) {
      b = fma(b, (float8)h->momentum, g * h->undamped);
    } else {
      b = fma(g, (float8)h->undamped, b * h->momentum);
    }
  }
  *first = b;
  g = h->nesterov != 0 ? fma(b, (float8)h->momentum, g) : b;
#endif
  return fma(g, (float8)h->minus_lr, p);
}
#endif

#if ARRAYS > 2
#define MOMENTS __global float* restrict firsts, __global float* restrict seconds,
#elif ARRAYS > 1
#define MOMENTS __global float* restrict firsts,
#else
#define MOMENTS
#endif

// What both kernels take: the runs, the tile's arrays, where parameters are handed out as
// `out_type` (as FLOAT32 they are taken from `parameters`), and a flag that becomes 1 where a
// gradient that was used is not finite.
#define TILE                                                                                     \
  const __global Run *restrict runs, const __global Settings *restrict settings,                 \
      __global float *restrict parameters, MOMENTS __global ushort *restrict out, uint out_type, \
      __global uint *restrict not_finite

// The update of both: steps elements [i, i + count) of the tile by gradient g.
#if ARRAYS > 2
#define MOMENTS_GIVEN firsts + i, seconds + i,
#elif ARRAYS > 1
#define MOMENTS_GIVEN firsts + i,
#else
#define MOMENTS_GIVEN
#endif
void step_eight(Run run, const __global Settings* settings, __global float* parameters,
                MOMENTS float8 g, __global ushort* out, uint out_type, __global uint* not_finite,
                uint count) {
  float8 p = load(parameters, count);
  if (run.settings != SKIP) {
    float8 first = 0, second = 0;
    if (any((as_uint8(g) & 0x7F800000u) == 0x7F800000u)) *not_finite = 1;
#if ARRAYS > 1
    first = load(firsts, count);
#endif
#if ARRAYS > 2
    second = load(seconds, count);
#endif
    p = stepped(p, g, settings + run.settings, run.rest != 0, &first, &second);
    store(p, parameters, count);
#if ARRAYS > 1
    store(first, firsts, count);
#endif
#if ARRAYS > 2
    store(second, seconds, count);
#endif
  }
  if (out_type != FLOAT32) store_halves(out_type, p, out, count);
}

// With a dense gradient of `type`.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void step_dense(
    TILE, const __global uchar* restrict gradient, uint type) {
  const Run run = runs[get_group_id(0)];
  const uint i = run.begin + 8 * (uint)get_local_id(0);
  if (i >= run.end) return;
  const uint count = min(8u, run.end - i);
  step_eight(run, settings, parameters + i, MOMENTS_GIVEN load_as(type, gradient, i, count),
             out + i, out_type, not_finite, count);
}

// ------------------------------------------------------------------ decompress and update

#define BLOCK 65536u  // entries that share a count; a run lies within one

// The first of the indices [from, to), which rise, that is `least` or more.
uint first_at_least(const __global ushort* indices, uint from, uint to, uint least) {
  while (from < to) {
    const uint middle = from + (to - from) / 2;
    if (indices[middle] < least) {
      from = middle + 1;
    } else {
      to = middle;
    }
  }
  return from;
}

// With a compressed gradient (topk.hpp): a work-group scatters the entries of its run into local
// memory and steps by that; the dense gradient exists nowhere. `starts` says which entries are
// each block's; indices and values lie so many bytes into `encoded`.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void step_topk(
    TILE, const __global uchar* restrict encoded, uint type, const __global uint* restrict starts,
    uint indices_at, uint values_at) {
  __local float gradient[RUN];
  __local uint entries[2];
  const Run run = runs[get_group_id(0)];
  const uint lane = (uint)get_local_id(0);
  const uint block = run.begin / BLOCK;
  const uint base = block * BLOCK;
  const __global ushort* indices = (const __global ushort*)(encoded + indices_at);
  vstore8((float8)0, lane, gradient);
  if (lane < 2) {
    const uint edge = (lane == 0 ? run.begin : run.end) - base;
    entries[lane] = first_at_least(indices, starts[block], starts[block + 1], edge);
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  for (uint e = entries[0] + lane; e < entries[1]; e += GROUP) {
    gradient[indices[e] + base - run.begin] = load_as(type, encoded + values_at, e, 1).s0;
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  const uint i = run.begin + 8 * lane;
  if (i >= run.end) return;
  step_eight(run, settings, parameters + i, MOMENTS_GIVEN vload8(lane, gradient), out + i, out_type,
             not_finite, min(8u, run.end - i));
}
