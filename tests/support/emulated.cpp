// Calls one function of the library in a process of its own: `emulated FUNCTION INPUT OUTPUT`.
//
// INPUT, all numbers of 8 bytes: counts of arrays, integers and floating-point arguments; for each
// array its address in the caller, its size in bytes and whether it holds pointers, then its bytes;
// the arguments. A number in the caller's address range of an array is moved to its copy here.
// OUTPUT: what was returned, then the bytes of the arrays that hold no pointers.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "exports.h"

struct Function {
  const char* name;
  void (*address)();
};
const Function FUNCTIONS[] = {
#include "functions.inc"
};

struct Array {
  uint64_t address, size, has_pointers;
  std::vector<uint64_t> words;
};

static uint64_t read_word(FILE* file) {
  uint64_t word;
  if (std::fread(&word, 8, 1, file) != 1) std::abort();
  return word;
}
static Array read_array(FILE* file) {
  Array array{read_word(file), read_word(file), read_word(file), {}};
  array.words.resize(array.size / 8 + 1);
  if (std::fread(array.words.data(), 1, array.size, file) != array.size) std::abort();
  return array;
}
static void move_pointer(uint64_t& word, std::vector<Array>& arrays) {
  for (Array& array : arrays)
    if (word >= array.address && word - array.address < std::max<uint64_t>(1, array.size)) {
      word = reinterpret_cast<uint64_t>(array.words.data()) + (word - array.address);
      return;
    }
}

int main(int, char** argv) {
  FILE* input = std::fopen(argv[2], "rb");
  const uint64_t n_arrays = read_word(input), n_integers = read_word(input),
                 n_reals = read_word(input);
  std::vector<Array> arrays;
  for (uint64_t i = 0; i < n_arrays; i++) arrays.push_back(read_array(input));
  uint64_t integers[20] = {};
  double reals[1] = {};
  for (uint64_t i = 0; i < n_integers; i++) move_pointer(integers[i] = read_word(input), arrays);
  for (uint64_t i = 0; i < n_reals; i++)
    if (std::fread(reals, 8, 1, input) != 1) std::abort();
  std::fclose(input);
  for (Array& array : arrays)
    for (uint64_t i = 0; array.has_pointers && i < array.size / 8; i++)
      move_pointer(array.words[i], arrays);

  // Where integers and floating-point numbers are passed does not depend on their order, and a
  // function does not see arguments after its own.
  using Any = int64_t (*)(double, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                          uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                          uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
  void (*address)() = nullptr;
  for (const Function& function : FUNCTIONS)
    if (std::string(argv[1]) == function.name) address = function.address;
  if (!address) std::abort();
  const uint64_t* a = integers;
  const int64_t returned = reinterpret_cast<Any>(address)(
      reals[0], a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12],
      a[13], a[14], a[15], a[16], a[17], a[18], a[19]);

  FILE* output = std::fopen(argv[3], "wb");
  std::fwrite(&returned, 8, 1, output);
  for (const Array& array : arrays)
    if (!array.has_pointers) std::fwrite(array.words.data(), 1, array.size, output);
  return std::fclose(output);
}
