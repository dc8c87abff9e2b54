// y = W x for a few vectors x at once, as decoding needs: each weight is read from memory once.
//
// Rows of W are divided among threads, and each output is one dot product. The order of its sum
// depends neither on threads nor on how many vectors there are: with AVX-512 each sequence gets the
// same bits as when it is decoded alone.

#pragma once

#include "common.h"

namespace ys {

constexpr int MAX_SUMS =
    REGISTERS / 2;  // sums that fit into registers beside what they are made of
constexpr int VECTORS_AT_ONCE = MAX_SUMS < 16 ? 2 : 4;

// The first n numbers, fewer than a vector holds, then zeros.
template <class Real, class W>
inline Vec<Real> load_first(const W* p, int64_t n) {
  W padded[Lanes<Real>::n] = {};
  std::memcpy(padded, p, size_t(n) * sizeof(W));
  return load<Real>(padded);
}

// The sums of eight registers, each in the order of `sum`, at a third of its cost.
template <class Real>
inline void sum_eight(const Vec<Real>* v, Real* sums) {
  for (int i = 0; i < 8; i++) sums[i] = sum<Real>(v[i]);
}
#if defined(__AVX512F__) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE __builtin_shufflevector
template <>
inline void sum_eight<float>(const Vec<float>* v, float* sums) {
  Vec<float> a[4], b[2];
  for (int i = 0; i < 4; i++)  // of registers i and i + 4: 8 partial sums each
    a[i] = SHUFFLE(v[i], v[i + 4], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SHUFFLE(v[i], v[i + 4], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 2; i++)  // of i, i + 2, i + 4, i + 6: 4 each
    b[i] = SHUFFLE(a[i], a[i + 2], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           SHUFFLE(a[i], a[i + 2], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  const Vec<float> c =
      SHUFFLE(b[0], b[1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
      SHUFFLE(b[0], b[1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  for (int i = 0; i < 8; i++) sums[i] = c[2 * i] + c[2 * i + 1];
}
#undef SHUFFLE
#endif
#endif

// dots[r][b] = row r of w (n numbers) . x[b], for R rows and B vectors.
template <int R, int B, class Real, class W>
inline void dot_block(const W* w, int64_t n, const Real* const* x, Real (*dots)[B]) {
  constexpr int lanes = Lanes<Real>::n;
  Vec<Real> sums[R][B] = {};
  int64_t i = 0;
  const char* next = reinterpret_cast<const char*>(w + R * n);  // the rows after these
  for (; i + lanes <= n; i += lanes) {
    for (size_t line = 0; sizeof(W) < 4 && line < R * lanes * sizeof(W); line += 64)
      __builtin_prefetch(next + line);
    next += R * lanes * sizeof(W);
    Vec<Real> part[B];
    for (int b = 0; b < B; b++) part[b] = load<Real>(x[b] + i);
    for (int r = 0; r < R; r++) {
      const Vec<Real> row = load<Real>(w + r * n + i);
      for (int b = 0; b < B; b++) sums[r][b] += row * part[b];
    }
  }
  if (i < n)
    for (int r = 0; r < R; r++) {
      const Vec<Real> row = load_first<Real>(w + r * n + i, n - i);
      for (int b = 0; b < B; b++) sums[r][b] += row * load_first<Real>(x[b] + i, n - i);
    }
  int done = 0;
  for (; done + 8 <= R * B; done += 8) sum_eight<Real>(&sums[0][0] + done, &dots[0][0] + done);
  for (; done < R * B; done++) (&dots[0][0])[done] = sum<Real>((&sums[0][0])[done]);
}

// One vector for each sequence, or for some of them.
template <class Real>
struct Vectors {
  Real* of[YS_MAX_SEQUENCES];
  int64_t n = 0;
  void add(Real* vector) { of[n++] = vector; }
};
enum class Put { SET, ADD, MULTIPLY };  // how a result is combined with the output's old value

template <int R, int B, class Real, class W>
inline void put_rows(const ys_linear& linear, int64_t row, Real* const* x, Real* const* out,
                     Put put) {
  const Real* slice[B];
  const int64_t group = row / (linear.n_out / linear.n_groups);
  for (int b = 0; b < B; b++) slice[b] = x[b] + group * linear.n_in;
  Real dots[R][B];
  dot_block<R, B>(static_cast<const W*>(linear.weight) + row * linear.n_in, linear.n_in, slice,
                  dots);
  const Real* scales = static_cast<const Real*>(linear.scales);
  const Real* bias = static_cast<const Real*>(linear.bias);
  for (int r = 0; r < R; r++)
    for (int b = 0; b < B; b++) {
      Real y = scales ? dots[r][b] * scales[row + r] : dots[r][b];
      if (bias) y += bias[row + r];
      Real& to = out[b][row + r];
      to = put == Put::SET ? y : put == Put::ADD ? to + y : to * y;
    }
}

template <int B, class Real, class W>
void put_range(const ys_linear& linear, Range rows, Real* const* x, Real* const* out, Put put) {
  constexpr int R = MAX_SUMS / B < 8 ? MAX_SUMS / B : 8;
  const int64_t per_group = linear.n_out / linear.n_groups;
  int64_t row = rows.begin;
  while (row < rows.end) {
    if (row + R <= rows.end && row / per_group == (row + R - 1) / per_group) {
      put_rows<R, B, Real, W>(linear, row, x, out, put);
      row += R;
    } else {
      put_rows<1, B, Real, W>(linear, row++, x, out, put);
    }
  }
}

template <class Real, class W>
void put_vectors(const ys_linear& linear, Range rows, const Vectors<Real>& x,
                 const Vectors<Real>& out, Put put) {
  // A few rows at a time for all vectors, so that the rows are read from memory once.
  constexpr int B = VECTORS_AT_ONCE;
  const int64_t step = x.n <= B ? rows.size() : 16;
  for (int64_t begin = rows.begin; begin < rows.end; begin += step) {
    const Range some{begin, std::min(rows.end, begin + step)};
    int64_t b = 0;
    for (; b + B <= x.n; b += B) put_range<B, Real, W>(linear, some, x.of + b, out.of + b, put);
    for (; b < x.n; b++) put_range<1, Real, W>(linear, some, x.of + b, out.of + b, put);
  }
}

// These rows of W x + bias, for each x, combined with out.
inline void apply(const ys_linear& linear, Range rows, const Vectors<double>& x,
                  const Vectors<double>& out, Put put = Put::SET) {
  put_vectors<double, double>(linear, rows, x, out, put);
}
inline void apply(const ys_linear& linear, Range rows, const Vectors<float>& x,
                  const Vectors<float>& out, Put put = Put::SET) {
  if (linear.format == YS_INT8) put_vectors<float, int8_t>(linear, rows, x, out, put);
  else if (linear.format == YS_BF16) put_vectors<float, bf16>(linear, rows, x, out, put);
  else put_vectors<float, float>(linear, rows, x, out, put);
}

}  // namespace ys
