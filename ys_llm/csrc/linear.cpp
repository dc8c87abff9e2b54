// Large matmuls in float32, for linear layers: y = x W, and the gradient of W, x^T dy.
//
// Each result is the sum of its products in the order of k (of rows, for the gradient), whatever
// the number of threads.

#include "gemm.h"

namespace ys {
namespace {

constexpr int64_t ROWS =
    16 * MR<float>;              // of x at a time: they stay in the L2 cache for all panels
constexpr int64_t DEPTH = 1024;  // of k at a time: rows of x and a panel of this size, too

void multiply(const float* x, int64_t stride_x, int64_t rows, const float* packed, int64_t k,
              int64_t m, float* out) {
  for (int64_t row = 0; row < rows; row += ROWS)
    for (int64_t from = 0; from < k; from += DEPTH)
      for (int64_t column = 0; column < m; column += NR<float>)
        matmul(x + row * stride_x + from, stride_x, std::min(ROWS, rows - row),
               packed + column * k + from * NR<float>, std::min(DEPTH, k - from),
               std::min<int64_t>(NR<float>, m - column), out + row * m + column, m, from > 0);
}

// Rows of the gradient are divided into blocks, as those of x in `matmul`.
struct Blocks {
  int64_t k, n = (k + MR<float> - 1) / MR<float>;
  Range operator[](int64_t i) const { return share(k, 1, n, i); }
};

// A piece of x, block by block: of each row of the piece the `size` columns of the block.
template <int R>
void pack_block(int64_t size, const float* x, int64_t stride_x, int64_t rows, float* to) {
  if constexpr (R > 0) {
    if (size != R) return pack_block<R - 1>(size, x, stride_x, rows, to);
    for (int64_t row = 0; row < rows; row++)
      std::memcpy(to + row * R, x + row * stride_x, R * sizeof(float));
  }
}

template <int R>
void add_gradient(int64_t size, const float* block, const float* panel, int64_t rows, float* sums) {
  if constexpr (R > 0) {
    if (size != R) return add_gradient<R - 1>(size, block, panel, rows, sums);
    constexpr int n = Lanes<float>::n;
    Sums<float, R> acc;
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
      for (int v = 0; v < 2; v++) acc[r][v] = load(sums + r * NR<float> + v * n);
    add_products<float, R>(block, 1, R, panel, rows, acc);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
      for (int v = 0; v < 2; v++) store(sums + r * NR<float> + v * n, acc[r][v]);
  }
}

constexpr int64_t PIECE = 512;  // rows of x and dy at a time

struct Operand {
  const float* numbers;
  int64_t stride, columns;
};

// `sums` holds the gradient panel by panel, each contiguous, until all rows are added.
void add_weight_grad(Operand x, Operand dy, int64_t rows, float* packed, float* sums, bool begins,
                     int threads) {
  const Blocks blocks{x.columns};
  const int64_t panels = (dy.columns + NR<float> - 1) / NR<float>;
  const auto width = [&](int64_t j) {
    return std::min<int64_t>(NR<float>, dy.columns - j * NR<float>);
  };
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> panel(PIECE * NR<float>);
    for (int64_t from = 0; from < rows; from += PIECE) {
      const int64_t some = std::min(PIECE, rows - from);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < blocks.n; i++)
        pack_block<MR<float>>(blocks[i].size(), x.numbers + from * x.stride + blocks[i].begin,
                              x.stride, some, packed + blocks[i].begin * PIECE);
#pragma omp for schedule(static)
      for (int64_t j = 0; j < panels; j++) {
        float* to = sums + j * x.columns * NR<float>;
        if (begins && from == 0) std::fill_n(to, x.columns * NR<float>, 0.f);
        pack_panel(dy.numbers + from * dy.stride + j * NR<float>, dy.stride, 1, some, width(j),
                   panel.data());
        for (int64_t i = 0; i < blocks.n; i++)
          add_gradient<MR<float>>(blocks[i].size(), packed + blocks[i].begin * PIECE, panel.data(),
                                  some, to + blocks[i].begin * NR<float>);
      }
    }
  }
}

void unpack(const float* sums, int64_t k, int64_t m, float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < k; row++)
    for (int64_t column = 0; column < m; column += NR<float>)
      std::copy_n(sums + column * k + row * NR<float>, std::min<int64_t>(NR<float>, m - column),
                  out + row * m + column);
}

}  // namespace
}  // namespace ys

extern "C" {

void ys_matmul_f(const float* x, int64_t stride_x, const float* packed, int64_t rows, int64_t k,
                 int64_t m, float* out, int64_t threads) {
  threads = std::max<int64_t>(1, std::min(threads, rows / ys::MR<float>));
#pragma omp parallel num_threads(int(threads))
  {
    const ys::Range mine =
        ys::share(rows, ys::MR<float>, omp_get_num_threads(), omp_get_thread_num());
    ys::multiply(x + mine.begin * stride_x, stride_x, mine.size(), packed, k, m,
                 out + mine.begin * m);
  }
}

int64_t ys_weight_grad_workspace_f(int64_t k) { return k * ys::PIECE; }

void ys_add_weight_grad_f(const float* x, int64_t stride_x, const float* dy, int64_t stride_dy,
                          int64_t rows, int64_t k, int64_t m, float* packed, float* sums,
                          int64_t begins, int64_t threads) {
  ys::add_weight_grad({x, stride_x, k}, {dy, stride_dy, m}, rows, packed, sums, begins != 0,
                      int(threads));
}

void ys_unpack_f(const float* sums, int64_t k, int64_t m, float* out, int64_t threads) {
  ys::unpack(sums, k, m, out, int(threads));
}
}
