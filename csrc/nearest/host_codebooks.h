// The codebooks of a search that is planned.
#pragma once

#include <mutex>
#include <vector>

#include "host/library.h"
#include "nearest/host_repeats.h"

namespace vqfast {

// Makes what a search needs of each codebook: its pivot, where blocks of vectors share it the prepared codes, and on
// demand which codes repeat others. Lives as long as the search; the codes stay the caller's.
class Codebooks {
 public:
  // p: after `plan`; its books are set to these. codes: (K, D) each. lengths: (p.num_books, K) or null.
  Codebooks(
      const NearestKernel& kernel, NearestProblem& p, const std::vector<const void*>& codes, int64_t threads,
      const void* lengths = nullptr)
      : kernel_(kernel),
        problem_(p),
        books_(codes.size()),
        repeats_(codes.size()),
        pivots_(p.num_books * p.d),
        bytes_(bytes_of(kernel, p)),
        prepared_(bytes_ * p.num_books) {
    p.books = books_.data();
    const int64_t step = p.k * wide_size(p.precision);
    for_parts(std::min(threads, p.num_books), p.num_books, [&](int64_t, Span span) {
      std::vector<double> room(lengths ? kSample * p.d : 0);
      for (int64_t b = span.begin; b < span.end; ++b) {
        books_[b].codes = codes[b];
        books_[b].lengths = lengths ? static_cast<const char*>(lengths) + b * step : nullptr;
        books_[b].pivot = pivots_.data() + b * p.d;
        books_[b].prepared = bytes_ ? prepared_.data() + b * bytes_ : nullptr;
        books_[b].packing = p.packing;
        books_[b].owner = this;
        books_[b].find_repeats = [](const Codebook& book) {
          return static_cast<Codebooks*>(book.owner)->repeats(book);
        };
        books_[b].scale = 1;
        if (!p.direct) kernel.centre(p, books_[b], room.data());
      }
    });
  }

  // Prepares the codes, together with all threads that call it; each must before its first search.
  void prepare(const NearestProblem& p) {
    if (bytes_ == 0) return;
    const int64_t parts = (p.groups + p.chunk - 1) / p.chunk;
    std::vector<double> room(books_[0].lengths ? p.d : 0);
    preparing_.run(p.num_books * parts, [&](int64_t n) {
      const int64_t first = n % parts * p.chunk;
      kernel_.prepare(p, books_[n / parts], {first, std::min(first + p.chunk, p.groups)}, room.data());
    });
  }

 private:
  // See Codebook::find_repeats.
  const uint8_t* repeats(const Codebook& book) {
    const std::lock_guard lock(finding_);
    const int64_t b = &book - books_.data();
    if (!book.repeats) {
      const auto find = [&]<class C>(C) {
        const C *codes = static_cast<const C*>(book.codes), *lengths = static_cast<const C*>(book.lengths);
        return repeats_of(codes, lengths, problem_.k, problem_.d);
      };
      repeats_[b] = problem_.precision == Precision::f64 ? find(double{}) : find(float{});
      __atomic_store_n(&books_[b].repeats, repeats_[b].data(), __ATOMIC_RELEASE);
    }
    return book.repeats;
  }

  // Bytes of a prepared codebook. 0 where each is searched once, so that preparing gains nothing, and where all would
  // take 32 MiB: glibc asks the system for so much anew at each call, and the system clears every page.
  static int64_t bytes_of(const NearestKernel& kernel, const NearestProblem& p) {
    const int64_t bytes = p.blocks > 1 && p.parts == 1 ? kernel.prepared_bytes(p) : 0;
    return bytes * p.num_books < (1 << 25) - (1 << 16) ? bytes : 0;
  }

  const NearestKernel& kernel_;
  const NearestProblem problem_;
  std::vector<Codebook> books_;
  std::mutex finding_;
  std::vector<std::vector<uint8_t>> repeats_;
  Buffer<double> pivots_;
  int64_t bytes_;
  Buffer<char> prepared_;
  SharedWork preparing_;
};

}  // namespace vqfast
