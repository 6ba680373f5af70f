// Memory that is kept from one call to the next, because the system takes longer to hand out and clear a page than a
// kernel to fill it: without, that was an eighth of a training step.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "numbers.h"

// Uninitialised memory for `size` numbers, a power of two of at least 2^18.
class Block {
    static constexpr int SMALLEST = 18;
    static constexpr size_t MOST_KEPT = (size_t(128) << 20) / sizeof(real);
    using Memory = std::unique_ptr<real[]>;

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

    int log_size = SMALLEST;
    Memory memory;

  public:
    explicit Block(size_t at_least = 0) {
        while (size() < at_least) log_size++;
        {
            Kept& all = kept();
            const std::lock_guard<std::mutex> lock(all.mutex);
            std::vector<Memory>& free = all.blocks[log_size];
            if (!free.empty()) memory = std::move(free.back()), free.pop_back(), all.total -= size();
        }
        if (!memory) memory.reset(new real[size()]);
    }
    Block(Block&&) = default;
    ~Block() {
        if (!memory) return;
        Kept& all = kept();
        const std::lock_guard<std::mutex> lock(all.mutex);
        if (all.total + size() > MOST_KEPT) return;
        all.blocks[log_size].push_back(std::move(memory)), all.total += size();
    }

    size_t size() const { return size_t(1) << log_size; }
    real* data() const { return memory.get(); }
};
