// Matmuls of a few rows with a matrix that is packed once and used many times.
//
// out (rows x N) = x (rows x K) @ W (K x N). W is stored in panels of NR columns (two registers),
// each contiguous and padded with zeros to NR. In bfloat16 two rows k, k + 1 are interleaved, as
// AVX512-BF16 and AMX read them:
//     panel[k / 2][column][k % 2]   in bf16         panel[k][column]   otherwise
// Sums are in float (in double for double), whatever the operands are.

#pragma once

#include "common.h"

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ys {

template <class Op>
constexpr int NR = 2 * Lanes<RealOf<Op>>::n;

template <class Op>
inline int64_t panel_size(int64_t k) {
  return (std::is_same<Op, bf16>::value ? (k + 1) / 2 * 2 : k) * NR<Op>;
}
template <class Op>
inline int64_t packed_size(int64_t k, int64_t n) {
  return (n + NR<Op> - 1) / NR<Op> * panel_size<Op>(k);
}

// Copies n numbers that are `step` apart to contiguous memory.
template <class Op, class Source>
inline void gather(const Source* from, int64_t step, int64_t n, Op* to) {
  using Real = RealOf<Op>;
  int64_t i = 0;
  if constexpr (std::is_same<Source, Real>::value)
    for (; step == 1 && i + Lanes<Real>::n <= n; i += Lanes<Real>::n) store(to + i, load(from + i));
  for (; i < n; i++) store_one(to + i, from[i * step]);
}

// Packs one panel of W, `columns` wide, with W[k][n] = source[k * step_k + n * step_n]. W is read
// in blocks along the direction in which it is contiguous.
template <class Op, class Source>
void pack_panel(const Source* source, int64_t step_k, int64_t step_n, int64_t k, int64_t columns,
                Op* panel) {
  constexpr int64_t pair = std::is_same<Op, bf16>::value ? 2 : 1, side = 32;
  struct Pair {
    Op of[pair];
  };
  Pair* pairs = reinterpret_cast<Pair*>(panel);
  alignas(64) Op block[side][side];  // a row of it is a row of W, or with step_k 1 a column
  const bool along = step_k == 1;
  if (columns < NR<Op> || k % pair) std::memset(panel, 0, panel_size<Op>(k) * sizeof(Op));
  for (int64_t i = 0; i < k; i += side) {
    const int64_t rows = std::min(side, k - i);
    if (rows % pair) std::memset(block, 0, sizeof(block));
    for (int64_t a = 0; a < (along ? columns : rows); a++) {
      const Source* from = source + (along ? i * step_k + a * step_n : (i + a) * step_k);
      gather(from, along ? step_k : step_n, along ? rows : columns, block[a]);
    }
    for (int64_t r = 0; r < rows; r += pair)
      for (int64_t c = 0; c < columns; c++) {
        Pair& to = pairs[(i + r) / pair * NR<Op> + c];
        for (int64_t one = 0; one < pair; one++)
          to.of[one] = along ? block[c][r + one] : block[r + one][c];
      }
  }
}

#if defined(__AMX_BF16__)
// Linux enables the tile registers for a process that asks for them.
inline bool amx_is_allowed() {
  static const bool allowed = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
  return allowed;
}

// Tiles 0-3 hold the sums of 32 x 32, 4 and 5 rows of x, 6 and 7 columns of W.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  TileShapes(int upper, int lower) {
    const int counts[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int i = 0; i < 8; i++) {
      row_bytes[i] = counts[i] ? 64 : 0;
      rows[i] = uint8_t(counts[i]);
    }
  }
};

template <bool two>
inline void amx_block(const bf16* x, int64_t ldx, const bf16* panel, int64_t k, float* out,
                      int64_t ldo, bool accumulate) {
  const int64_t out_step = ldo * 4, x_step = ldx * 2;
  if (accumulate) {
    _tile_loadd(0, out, out_step);
    _tile_loadd(1, out + 16, out_step);
    if (two) _tile_loadd(2, out + 16 * ldo, out_step);
    if (two) _tile_loadd(3, out + 16 * ldo + 16, out_step);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (two) _tile_zero(2);
    if (two) _tile_zero(3);
  }
  for (int64_t i = 0; i < k; i += 32) {
    _tile_loadd(6, panel + i * 32, 128);
    _tile_loadd(4, x + i, x_step);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel + i * 32 + 32, 128);
    _tile_dpbf16ps(1, 4, 7);
    if (two) {
      _tile_loadd(5, x + i + 16 * ldx, x_step);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, out_step);
  _tile_stored(1, out + 16, out_step);
  if (two) _tile_stored(2, out + 16 * ldo, out_step);
  if (two) _tile_stored(3, out + 16 * ldo + 16, out_step);
}

// amx_block for fewer than 32 columns: a tile is 16 wide, so the sums go to a buffer first.
template <bool two>
inline void amx_edge(const bf16* x, int64_t ldx, const bf16* panel, int64_t k, float* out,
                     int64_t ldo, int64_t width, int64_t rows, bool accumulate) {
  alignas(64) float buffer[32 * 32];
  amx_block<two>(x, ldx, panel, k, buffer, 32, false);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < width; c++)
      out[r * ldo + c] = (accumulate ? out[r * ldo + c] : 0) + buffer[r * 32 + c];
}

// Multiplies `each` rows at a time. K is cut into pieces, so that these rows of x stay in the L1
// cache (16 KB of its 48) while all panels are read.
template <bool two>
void amx_rows(const bf16* x, int64_t ldx, Range rows, int64_t each, const bf16* panels, int64_t k,
              int64_t columns, float* out, int64_t ldo, bool accumulate) {
  TileShapes shapes(int(std::min<int64_t>(16, each)), two ? int(each - 16) : 0);
  _tile_loadconfig(&shapes);
  constexpr int64_t piece = two ? 256 : 512;
  for (int64_t from = 0; from < k; from += piece)
    for (int64_t column = 0; column < columns; column += 32) {
      const bf16* panel = panels + column / 32 * panel_size<bf16>(k) + from * 32;
      const int64_t width = std::min<int64_t>(32, columns - column),
                    some = std::min(piece, k - from);
      for (int64_t row = rows.begin; row < rows.end; row += each) {
        const bf16* x_piece = x + row * ldx + from;
        float* to = out + row * ldo + column;
        const bool adds = accumulate || from;
        if (width == 32) amx_block<two>(x_piece, ldx, panel, some, to, ldo, adds);
        else amx_edge<two>(x_piece, ldx, panel, some, to, ldo, width, each, adds);
      }
    }
}

inline void amx_matmul(const bf16* x, int64_t ldx, int64_t rows, const bf16* panels, int64_t k,
                       int64_t columns, float* out, int64_t ldo, bool accumulate) {
  const int64_t full = rows / 32 * 32, left = rows - full;
  if (full) amx_rows<true>(x, ldx, {0, full}, 32, panels, k, columns, out, ldo, accumulate);
  if (left > 16)
    amx_rows<true>(x, ldx, {full, rows}, left, panels, k, columns, out, ldo, accumulate);
  else if (left)
    amx_rows<false>(x, ldx, {full, rows}, left, panels, k, columns, out, ldo, accumulate);
  _tile_release();
}
#endif

// The rows of a register block. Its sums take all registers but those of two vectors of the panel
// and one of x, or twice as many where bf16 is widened. On ARM gcc loads several numbers of x
// ahead, each into a register of its own.
#if defined(__AVX512BF16__)
template <class Op>
constexpr int USED = 3;
#elif defined(__aarch64__)
template <class Op>
constexpr int USED = std::is_same<Op, bf16>::value ? 18 : 12;
#else
template <class Op>
constexpr int USED = std::is_same<Op, bf16>::value ? 6 : 3;
#endif
template <class Op>
constexpr int MR = std::min(12, (REGISTERS - USED<Op>) / 2);

template <class Op, int R>
using Sums = Vec<RealOf<Op>>[R][2];

// acc += x @ panel; the number of row r and column i is x[r * step_row + i * step].
template <class Real, int R>
inline __attribute__((always_inline)) void add_products(const Real* x, int64_t step_row,
                                                        int64_t step, const Real* panel, int64_t k,
                                                        Sums<Real, R>& acc) {
  constexpr int n = Lanes<Real>::n;
  for (int64_t i = 0; i < k; i++) {
    const Vec<Real> left = load(panel + i * 2 * n), right = load(panel + i * 2 * n + n);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const Vec<Real> a = broadcast(x[r * step_row + i * step]);
      acc[r][0] += a * left;
      acc[r][1] += a * right;
    }
  }
}

template <class, int R>
inline void add_products(const bf16* x, int64_t step_row, int64_t, const bf16* panel, int64_t k,
                         Sums<bf16, R>& acc) {
  for (int64_t i = 0; i < k; i += 2) {
    const bf16* row = panel + i * NR<bf16>;
    const bool odd = i + 1 == k;
#if defined(__AVX512BF16__)
    const __m512bh left = (__m512bh)_mm512_loadu_si512(row),
                   right = (__m512bh)_mm512_loadu_si512(row + 32);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      int32_t pair = x[r * step_row + i];
      if (!odd) std::memcpy(&pair, x + r * step_row + i, 4);
      const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
      acc[r][0] = (Vec<float>)_mm512_dpbf16_ps((__m512)acc[r][0], a, left);
      acc[r][1] = (Vec<float>)_mm512_dpbf16_ps((__m512)acc[r][1], a, right);
    }
#else
    U32 bits[2];
    std::memcpy(bits, row, sizeof bits);
    Vec<float> even[2], uneven[2];
    for (int v = 0; v < 2; v++) {
      even[v] = (Vec<float>)(bits[v] << 16);
      uneven[v] = (Vec<float>)(bits[v] & 0xffff0000u);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const Vec<float> a = broadcast(widen(x[r * step_row + i])),
                       b = broadcast(odd ? 0.0f : widen(x[r * step_row + i + 1]));
      acc[r][0] += a * even[0];
      acc[r][1] += a * even[1];
      acc[r][0] += b * uneven[0];
      acc[r][1] += b * uneven[1];
    }
#endif
  }
}

// R rows x `width` columns of the result, accumulated in registers.
template <class Op, int R>
inline void block(const Op* x, int64_t ldx, const Op* panel, int64_t k, RealOf<Op>* out,
                  int64_t ldo, int64_t width, bool accumulate) {
  using Real = RealOf<Op>;
  constexpr int n = Lanes<Real>::n;
  const bool whole = width >= NR<Op>;
  Sums<Op, R> acc;
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int v = 0; v < 2; v++)
      acc[r][v] = whole && accumulate ? load(out + r * ldo + v * n) : Vec<Real>{};
  add_products<Op, R>(x, ldx, 1, panel, k, acc);
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    Real* to = out + r * ldo;
    if (whole) {
      store(to, acc[r][0]);
      store(to + n, acc[r][1]);
    } else {
      Real row[NR<Op>];
      store(row, acc[r][0]);
      store(row + n, acc[r][1]);
      for (int64_t c = 0; c < width; c++) to[c] = (accumulate ? to[c] : 0) + row[c];
    }
  }
}

template <class Op, int R>
inline void block_of(int64_t rows, const Op* x, int64_t ldx, const Op* panel, int64_t k,
                     RealOf<Op>* out, int64_t ldo, int64_t width, bool accumulate) {
  if constexpr (R > 0) {
    if (rows == R) block<Op, R>(x, ldx, panel, k, out, ldo, width, accumulate);
    else block_of<Op, R - 1>(rows, x, ldx, panel, k, out, ldo, width, accumulate);
  }
}

// out[:, 0:columns] = x @ W[:, 0:columns]; `accumulate` adds to out. `panels` may begin at any
// panel. Rows are divided into blocks of nearly equal size: a small last block would leave the
// arithmetic units waiting for each other's sums.
template <class Op>
void matmul(const Op* x, int64_t ldx, int64_t rows, const Op* panels, int64_t k, int64_t columns,
            RealOf<Op>* out, int64_t ldo, bool accumulate) {
#if defined(__AMX_BF16__)
  if constexpr (std::is_same<Op, bf16>::value)
    if (k % 32 == 0 && amx_is_allowed())
      return amx_matmul(x, ldx, rows, panels, k, columns, out, ldo, accumulate);
#endif
  const int64_t blocks = (rows + MR<Op> - 1) / MR<Op>;
  for (int64_t column = 0; column < columns; column += NR<Op>) {
    const Op* panel = panels + column / NR<Op> * panel_size<Op>(k);
    const int64_t width = std::min<int64_t>(NR<Op>, columns - column);
    for (int64_t i = 0; i < blocks; i++) {
      const Range some = share(rows, 1, blocks, i);
      block_of<Op, MR<Op>>(some.size(), x + some.begin * ldx, ldx, panel, k,
                           out + some.begin * ldo + column, ldo, width, accumulate);
    }
  }
}

}  // namespace ys
