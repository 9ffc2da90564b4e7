// The codebooks of a planned search.
#pragma once

#include <mutex>
#include <vector>

#include "host/library.h"
#include "nearest/host_repeats.h"

namespace vqfast {

// Each with its pivot; prepared once where blocks of rows share them.
class Books {
 public:
  // codes: each book's; lengths: null, or (p.num_books, p.k) what they are divided by.
  Books(
      const Kernel& kernel, Problem& p, const std::vector<const void*>& codes, int64_t threads,
      const void* lengths = nullptr)
      : kernel_(kernel),
        problem_(p),
        books_(codes.size()),
        repeats_(codes.size()),
        pivots_(p.num_books * p.d),
        bytes_(bytes_of(kernel, p)),
        prepared_(bytes_ * p.num_books) {
    p.books = books_.data();
    const int64_t step = p.k * int64_t(p.type == Type::f64 ? sizeof(double) : sizeof(float));
    for_parts(std::min(threads, p.num_books), p.num_books, [&](int64_t, Span span) {
      std::vector<double> room(lengths ? kSample * p.d : 0);
      for (int64_t b = span.begin; b < span.end; ++b) {
        books_[b].codes = codes[b];
        books_[b].lengths = lengths ? static_cast<const char*>(lengths) + b * step : nullptr;
        books_[b].pivot = pivots_.data() + b * p.d;
        books_[b].prepared = bytes_ ? prepared_.data() + b * bytes_ : nullptr;
        books_[b].per = p.per;
        books_[b].owner = this;
        books_[b].find_repeats = [](const Codebook& book) { return static_cast<Books*>(book.owner)->repeats(book); };
        kernel.centre(p, books_[b], room.data());
      }
    });
  }

  // Each thread calls this before its first search.
  void prepare(const Problem& p) {
    if (bytes_ == 0) return;
    const int64_t parts = (p.groups + p.chunk - 1) / p.chunk;
    std::vector<double> room(books_[0].lengths ? p.d : 0);
    shared_.run(p.num_books * parts, [&](int64_t n) {
      kernel_.prepare(p, books_[n / parts], part_of(p.groups, parts, n % parts), room.data());
    });
  }

 private:
  const uint8_t* repeats(const Codebook& book) {
    const std::lock_guard lock(repeating_);
    const int64_t b = &book - books_.data();
    if (!book.repeats) {
      const auto find = [&]<class C>(C) {
        const C *codes = static_cast<const C*>(book.codes), *lengths = static_cast<const C*>(book.lengths);
        return repeats_of(codes, lengths, problem_.k, problem_.d);
      };
      repeats_[b] = problem_.type == Type::f64 ? find(double{}) : find(float{});
      __atomic_store_n(&books_[b].repeats, repeats_[b].data(), __ATOMIC_RELEASE);
    }
    return book.repeats;
  }

  // Of one; none where each is searched once, or all would take so much that the allocator gets it anew for each call:
  // from 32 MiB on, glibc asks the system, which clears every page.
  static int64_t bytes_of(const Kernel& kernel, const Problem& p) {
    const int64_t bytes = p.blocks > 1 && p.parts == 1 ? kernel.prepared(p) : 0;
    return bytes * p.num_books < (1 << 25) - (1 << 16) ? bytes : 0;
  }

  const Kernel& kernel_;
  const Problem problem_;
  std::vector<Codebook> books_;
  std::mutex repeating_;
  std::vector<std::vector<uint8_t>> repeats_;
  Buffer<double> pivots_;
  int64_t bytes_;
  Buffer<char> prepared_;
  Shared shared_;
};

}  // namespace vqfast
