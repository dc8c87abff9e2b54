#include "gemv.h"

namespace ys {
namespace {

// Sums of a block of R vectors and P panels; beside them a register block takes one register for
// each vector or each panel, whichever are fewer, and one more.
constexpr int MAX_SUMS = REGISTERS < 32 ? 12 : 24;
constexpr int MAX_VECTORS = MAX_SUMS / 2;
constexpr int max_panels(int vectors) { return std::min(8, MAX_SUMS / vectors); }

template <class Real>
struct Block {
  int64_t k;         // numbers of x
  const Real* x;     // the first vector
  int64_t stride;    // from one vector to the next
  Real* const* out;  // of each vector
  const ys_linear* linear;
  int64_t group, panel;  // the first panel, of this group
  Range outputs;         // those that are wanted
  Put put;
};

// sums += products with P panels, `size` weights apart.
template <int R, int P, class Real, class W>
inline __attribute__((always_inline)) void add_products(const Block<Real>& b, const W* panels,
                                                        Vec<Real> (&sums)[R][P]) {
  constexpr int n = Lanes<Real>::n;
  const int64_t size = b.k * n;
  for (int64_t k = 0; k < b.k; k++) {
    if constexpr (R <= P) {
      Vec<Real> x[R];
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) x[r] = broadcast(b.x[r * b.stride + k]);
#pragma GCC unroll 12
      for (int p = 0; p < P; p++) {
        const Vec<Real> weights = load<Real>(panels + p * size + k * n);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) sums[r][p] += x[r] * weights;
      }
    } else {
      Vec<Real> weights[P];
#pragma GCC unroll 12
      for (int p = 0; p < P; p++) weights[p] = load<Real>(panels + p * size + k * n);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) {
        const Vec<Real> x = broadcast(b.x[r * b.stride + k]);
#pragma GCC unroll 12
        for (int p = 0; p < P; p++) sums[r][p] += x * weights[p];
      }
    }
  }
}

template <class Real>
inline Vec<Real> combined(Vec<Real> y, Vec<Real> old, Put put) {
  return put == Put::SET ? y : put == Put::ADD ? old + y : old * y;
}

// Writes one panel's outputs of one vector.
template <class Real>
__attribute__((noinline)) void put_panel(const Block<Real>& b, int64_t panel, Vec<Real> y,
                                         Real* out) {
  constexpr int n = Lanes<Real>::n;
  const int64_t per_group = b.linear->n_out / b.linear->n_groups,
                first = b.group * per_group + panel * n,
                width = std::min<int64_t>(n, per_group - panel * n);
  const Real *scales = static_cast<const Real*>(b.linear->scales),
             *bias = static_cast<const Real*>(b.linear->bias);
  if (scales) y *= load_part<Real>(scales + first, width);
  if (bias) y += load_part<Real>(bias + first, width);
  if (b.outputs.begin <= first && first + width <= b.outputs.end) {
    const Vec<Real> old = b.put == Put::SET ? y : load_part<Real>(out + first, width);
    return store_part<Real>(out + first, combined<Real>(y, old, b.put), width);
  }
  for (int64_t i = 0; i < width; i++)  // a panel that two threads share
    if (b.outputs.begin <= first + i && first + i < b.outputs.end)
      out[first + i] = combined<Real>(y, broadcast(out[first + i]), b.put)[i];
}

template <int R, int P, class Real, class W>
void block(const Block<Real>& b) {
  constexpr int n = Lanes<Real>::n;
  const int64_t per_group = b.linear->n_out / b.linear->n_groups, panels = (per_group + n - 1) / n;
  Vec<Real> sums[R][P] = {};
  add_products<R, P>(
      b, static_cast<const W*>(b.linear->weight) + (b.group * panels + b.panel) * b.k * n, sums);
  Vec<Real> results[R][P];  // in memory; the sums are in registers, which have no indices
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 12
    for (int p = 0; p < P; p++) results[r][p] = sums[r][p];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) put_panel(b, b.panel + p, results[r][p], b.out[r]);
}

template <int R, int P, class Real, class W>
void block_of_panels(const Block<Real>& b, int64_t panels) {
  if constexpr (P > 0) {
    if (panels == P) block<R, P, Real, W>(b);
    else block_of_panels<R, P - 1, Real, W>(b, panels);
  }
}
template <int R, class Real, class W>
void block_of(const Block<Real>& b, int64_t vectors, int64_t panels) {
  if constexpr (R > 0) {
    if (vectors == R) block_of_panels<R, max_panels(R), Real, W>(b, panels);
    else block_of<R - 1, Real, W>(b, vectors, panels);
  }
}

template <class Real>
bool are_equally_far_apart(Real* const* vectors, int64_t n) {
  for (int64_t i = 2; i < n; i++)
    if (vectors[i] - vectors[i - 1] != vectors[1] - vectors[0]) return false;
  return true;
}

// Some vectors, `each` of them at a time, and panels of one group. Vectors and panels are divided
// into blocks of nearly equal size. All vectors are multiplied with a few panels, which stay in the
// L1 cache, before the next.
template <class Real, class W>
void put_group(Block<Real> b, Range panels, const Vectors<Real>& x, const Vectors<Real>& out,
               int64_t each) {
  const int64_t offset = b.group * b.k, blocks = (x.n + each - 1) / each,
                at_once = max_panels(int((x.n + blocks - 1) / blocks)),
                steps = (panels.size() + at_once - 1) / at_once;
  for (int64_t step = 0; step < steps; step++)
    for (int64_t i = 0; i < blocks; i++) {
      const Range some = share(panels.size(), 1, steps, step), rows = share(x.n, 1, blocks, i);
      b.panel = panels.begin + some.begin;
      b.x = x.of[rows.begin] + offset;
      b.stride = rows.size() > 1 ? x.of[rows.begin + 1] - x.of[rows.begin] : 0;
      b.out = out.of + rows.begin;
      block_of<MAX_VECTORS, Real, W>(b, rows.size(), some.size());
    }
}

template <class Real, class W>
void put_outputs(const ys_linear& linear, Range outputs, const Vectors<Real>& x,
                 const Vectors<Real>& out, Put put) {
  constexpr int n = Lanes<Real>::n;
  if (!x.n || !outputs.size()) return;
  const int64_t per_group = linear.n_out / linear.n_groups,
                each = are_equally_far_apart(x.of, x.n) ? MAX_VECTORS : 1;
  Block<Real> b{linear.n_in, nullptr, 0, nullptr, &linear, 0, 0, outputs, put};
  for (b.group = outputs.begin / per_group; b.group * per_group < outputs.end; b.group++) {
    const int64_t begin = std::max<int64_t>(0, outputs.begin - b.group * per_group),
                  end = std::min(per_group, outputs.end - b.group * per_group);
    put_group<Real, W>(b, {begin / n, (end + n - 1) / n}, x, out, each);
  }
}

}  // namespace

void apply(const ys_linear& linear, Range outputs, const Vectors<double>& x,
           const Vectors<double>& out, Put put) {
  put_outputs<double, double>(linear, outputs, x, out, put);
}
void apply(const ys_linear& linear, Range outputs, const Vectors<float>& x,
           const Vectors<float>& out, Put put) {
  if (linear.format == YS_INT8) put_outputs<float, int8_t>(linear, outputs, x, out, put);
  else if (linear.format == YS_BF16) put_outputs<float, bf16>(linear, outputs, x, out, put);
  else put_outputs<float, float>(linear, outputs, x, out, put);
}

}  // namespace ys

extern "C" int64_t ys_decode_panel(int operands) {
  return operands == YS_F64 ? ys::Lanes<double>::n : ys::Lanes<float>::n;
}
