// Memory that is kept from one call to the next, because the system takes longer to hand out and clear a page than a
// kernel to fill it: without, that was an eighth of a training step.
#pragma once

#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "numbers.h"

// Uninitialised memory of a power of two of bytes, at least a megabyte. Libraries for other numbers and flavours, which a
// process may load too, share what is kept (the linker makes one object of it), so that does not depend on the numbers.
class Block {
    static constexpr int SMALLEST = 20;
    static constexpr size_t MOST_KEPT = size_t(128) << 20;
    using Memory = std::unique_ptr<char[]>;

    // Blocks that nobody uses, by the logarithm of their size. It is never destroyed: blocks may outlive static objects.
    struct Kept {
        std::mutex mutex;
        std::vector<std::vector<Memory>> blocks{64};
        size_t total = 0;
    };
    static Kept& kept() {
        static Kept& all = *new Kept;
        return all;
    }

    int log_bytes = SMALLEST;
    Memory memory;

    size_t bytes() const { return size_t(1) << log_bytes; }

  public:
    // Throws if that many numbers are more than there can be.
    explicit Block(size_t numbers) {
        if (numbers > (size_t(1) << 62) / sizeof(real)) throw std::bad_alloc();
        while (bytes() < numbers * sizeof(real)) log_bytes++;
        {
            Kept& all = kept();
            const std::lock_guard<std::mutex> lock(all.mutex);
            std::vector<Memory>& free = all.blocks[log_bytes];
            if (!free.empty()) memory = std::move(free.back()), free.pop_back(), all.total -= bytes();
        }
        if (!memory) memory.reset(new char[bytes()]);
    }
    Block(Block&&) = default;
    ~Block() {
        if (!memory) return;
        Kept& all = kept();
        const std::lock_guard<std::mutex> lock(all.mutex);
        if (all.total + bytes() > MOST_KEPT) return;
        all.blocks[log_bytes].push_back(std::move(memory)), all.total += bytes();
    }

    size_t size() const { return bytes() / sizeof(real); }  // in numbers
    real* data() const { return reinterpret_cast<real*>(memory.get()); }
};

// Arrays that are taken one after the other and given back together: what is taken after `mark` lasts until `release`.
class Arena {
  public:
    struct Mark {
        size_t block = 0, used = 0;
    };

    real* take(size_t numbers) {
        while (true) {
            if (taken.block == blocks.size()) blocks.emplace_back(numbers);
            if (taken.used + numbers <= blocks[taken.block].size()) break;
            taken.block++, taken.used = 0;
        }
        taken.used += numbers;
        return blocks[taken.block].data() + taken.used - numbers;
    }
    Mark mark() const { return taken; }
    void release(Mark to) { taken = to; }

  private:
    std::vector<Block> blocks;
    Mark taken;
};
