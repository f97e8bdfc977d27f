// One allocation of device memory, cut into arrays.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastvid {

// Lay an allocation out twice: first from null, which counts the bytes, then over the memory itself.
class Workspace {
 public:
  explicit Workspace(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    constexpr size_t kAlignment = 256;
    const size_t start = bytes_;
    bytes_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(base_ + start);
  }
  size_t bytes() const { return bytes_; }

 private:
  char* base_;
  size_t bytes_ = 0;
};

}  // namespace fastvid
