"""Batches: nothing lost, nothing twice, within the limit, the same order whoever carries it out, resumable."""

import threading
from contextlib import suppress

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import damaged
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from equicat.data import batches as module
from equicat.data.batches import BatchReader, BatchSampler, ResumableLoader, batches, edge_costs
from equicat.data.datasets import MemoryDataset, Subset
from equicat.data.info import DatasetInfo
from equicat.data.neighbors import neighbor_list
from equicat.data.store import Store, write_store
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.testing import example_structures


def all_ranks(n: int, limit: int, n_ranks: int, costs=None, epoch: int = 0, **options) -> list[list[list[int]]]:
    found = []
    for rank in range(n_ranks):
        sampler = BatchSampler(n, limit, costs, rank=(rank, n_ranks), **options)
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(found[-1]) == len(sampler)
    return found


def line_of(ranks: list[list[list[int]]]) -> list[int]:
    return [i for rank in ranks for batch in rank for i in batch]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("limit", [1, 4, 16, 1000])
@pytest.mark.parametrize("n", [7, 16, 103])
def test_every_structure_once_and_ranks_in_step(n, limit, n_ranks, shuffle, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    monkeypatch.setattr(module, "WINDOW", 3)
    ranks = all_ranks(n, limit, n_ranks, shuffle=shuffle, seed=1)
    assert sorted(line_of(ranks)) == list(range(n))
    assert len({len(rank) for rank in ranks}) == 1, "as many steps on each"
    sizes = [len(batch) for rank in ranks for batch in rank]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= limit + (n < limit * n_ranks * -(-n // (limit * n_ranks)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_ranks", [1, 4])
def test_budget(n_ranks, seed, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 50)
    costs = np.random.default_rng(seed).integers(100, 4000, 1000)
    budget = 40_000
    ranks = all_ranks(1000, budget, n_ranks, costs, epoch=seed, shuffle=True, seed=seed)
    assert sorted(line_of(ranks)) == list(range(1000))
    filled = np.array([[costs[batch].sum() for batch in rank] for rank in ranks])
    assert filled.max() <= budget
    assert filled.mean() > 0.8 * (budget - costs.max())
    # Ranks finish a step together: what they hold differs by less than two structures.
    assert (filled.max(axis=0) - filled.min(axis=0)).max() < 2 * costs.max()


def test_number_of_batches_is_that_of_every_epoch():
    costs = np.random.default_rng(0).integers(1, 50, 3000)
    sampler = BatchSampler(3000, 200, costs, shuffle=True)
    lengths = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        lengths.append(len(list(sampler)))
    assert set(lengths) == {len(sampler)}


def test_what_cannot_be_shared():
    with pytest.raises(InputError, match=r"3 structures cannot be shared by 4 processes"):
        len(BatchSampler(3, 2, rank=(0, 4)))
    with pytest.raises(InputError, match=r"may hold 5,000 edges, but one structure has about 3,000"):
        BatchSampler(2, 5000, np.array([3000, 10]))
    with pytest.raises(InputError, match=r"2 structures with 11 edges cannot be shared by 2 processes in batches of"):
        len(BatchSampler(2, 20, np.array([10, 1]), rank=(0, 2)))
    with pytest.raises(InputError, match="holds nothing"):
        BatchSampler(2, 0)


class TestOrder:
    def test_of_seed_and_epoch_alone(self):
        which = [{"epoch": epoch, "seed": seed} for seed in (1, 2) for epoch in (0, 1)]
        orders = [line_of(all_ranks(500, 7, 1, shuffle=True, **w)) for w in which]
        again = [line_of(all_ranks(500, 7, 1, shuffle=True, **w)) for w in which]
        assert orders == again
        assert len({tuple(order) for order in orders}) == 4
        assert line_of(all_ranks(500, 7, 1)) == list(range(500))

    def test_shards_stay_together(self, monkeypatch):
        """A stretch of the epoch touches few shards, and each shard in one stretch only."""
        monkeypatch.setattr(module, "BLOCK", 100)
        monkeypatch.setattr(module, "WINDOW", 4)
        shards = np.array(line_of(all_ranks(4000, 10, 1, shuffle=True))) // 100
        for k in range(0, 4000, 400):
            assert len(np.unique(shards[k : k + 400])) == 4
        assert len(np.unique(shards[:400])) == 4
        assert sorted(np.unique(shards[:400])) != [0, 1, 2, 3], "blocks are shuffled"

    @pytest.mark.parametrize("n_workers", [0, 1, 2])
    def test_does_not_depend_on_workers(self, n_workers):
        structures = [named(i) for i in range(20)]
        loader = batches(structures, 3.0, 6, shuffle_seed=4, num_workers=n_workers)
        ids = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            ids.append([batch.ids for batch in loader])
        expected = []
        for epoch in range(2):
            sampler = BatchSampler(20, 6, shuffle=True, seed=4)
            sampler.set_epoch(epoch)
            expected.append([tuple(str(i) for i in numbers) for numbers in sampler])
        assert ids == expected


def named(i: int) -> Structure:
    base = example_structures((8, 29), i)[1]
    return Structure(numbers=base.numbers, positions=base.positions, cell=base.cell, pbc=base.pbc, sid=str(i))


class TestResume:
    def test_in_the_middle_of_an_epoch(self):
        structures = [named(i) for i in range(23)]
        whole = batches(structures, 3.0, 4, shuffle_seed=0)
        whole.sampler.set_epoch(3)
        expected = [batch.ids for batch in whole]
        first = batches(structures, 3.0, 4, shuffle_seed=0)
        first.sampler.set_epoch(3)
        given = iter(first)
        head = [next(given).ids for _ in range(2)]
        state = first.state_dict()
        second = batches(structures, 3.0, 4, shuffle_seed=0)
        second.load_state_dict(state)
        second.sampler.set_epoch(3)
        assert len(second) == len(expected)
        assert head + [batch.ids for batch in second] == expected
        assert second.state_dict()["n_given"] == len(expected)
        second.sampler.set_epoch(4)
        assert len([batch.ids for batch in second]) == len(expected), "the next epoch is whole"

    def test_finished_epoch_and_another_plan(self):
        structures = [named(i) for i in range(8)]
        loader = batches(structures, 3.0, 4)
        assert len(list(loader)) == 2
        again = batches(structures, 3.0, 4)
        again.load_state_dict(loader.state_dict())
        assert len(list(again)) == 2
        given = iter(loader)
        next(given)
        other = batches(structures[:7], 3.0, 4)
        other.load_state_dict(loader.state_dict())
        assert len(list(other)) == 2, "another data set: from the start"

    def test_ranks_of_a_resumed_epoch(self):
        for rank in (0, 1):
            expected = list(BatchSampler(50, 4, shuffle=True, rank=(rank, 2)))
            sampler = BatchSampler(50, 4, shuffle=True, rank=(rank, 2))
            sampler.start = 3
            assert list(sampler) == expected[3:]

    def test_through_lightning(self, tmp_path):
        """A run stopped between two checkpoints of an epoch sees, once resumed, what an undisturbed one sees."""

        class Seen(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(()))
                self.seen = []

            def training_step(self, batch, _):
                self.seen.append((self.current_epoch, batch.ids))
                return self.weight**2

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), 0.1)

        class Stop(Callback):
            def on_train_batch_end(self, trainer, *_):
                if trainer.global_step == 8:
                    raise KeyboardInterrupt

        structures = [named(i) for i in range(22)]

        def fit(folder, callbacks=(), checkpoint=None):
            model = Seen()
            quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
            save = ModelCheckpoint(folder, "step", every_n_train_steps=7, save_top_k=1, enable_version_counter=False)
            trainer = pl.Trainer(
                max_epochs=3, accelerator="cpu", use_distributed_sampler=False, callbacks=[save, *callbacks], **quiet
            )
            with suppress(SystemExit):  # what Lightning makes of the interrupt
                trainer.fit(model, batches(structures, 3.0, 4, shuffle_seed=2), ckpt_path=checkpoint)
            return model.seen

        expected = fit(tmp_path / "a")
        assert len(expected) == 18
        assert len({ids for _, batch in expected for ids in batch}) == 22
        stopped = fit(tmp_path / "b", [Stop()])
        assert stopped == expected[:8]
        assert fit(tmp_path / "b", checkpoint=tmp_path / "b" / "step.ckpt") == expected[7:]


class TestEdgeCosts:
    STRUCTURES = tuple(s for seed in range(6) for s in example_structures((8, 29), seed) if s.pbc.any())

    def test_counted_when_the_store_was_made(self, tmp_path):
        counts = [neighbor_list(s, 4.0)[0].shape[1] for s in self.STRUCTURES]
        structures = [
            Structure(**{**vars(s), "info": {"n_edges": n}}) for s, n in zip(self.STRUCTURES, counts, strict=True)
        ]
        info = DatasetInfo(provenance={"edges_within": 4.0})
        write_store(tmp_path / "s", structures, info, columns=["n_edges"])
        store = Store(tmp_path / "s")
        assert edge_costs(store, 4.0).tolist() == counts
        assert edge_costs(Subset(store, np.array([3, 1])), 4.0).tolist() == [counts[1], counts[3]]
        assert edge_costs(store, 5.0).tolist() != counts, "of another cutoff"

    def test_estimated_from_atoms(self):
        memory = MemoryDataset(self.STRUCTURES)
        costs = edge_costs(memory, 4.0)
        counts = np.array([neighbor_list(s, 4.0)[0].shape[1] for s in self.STRUCTURES])
        assert costs.sum() == pytest.approx(counts.sum(), rel=0.02)
        assert np.corrcoef(costs, memory.n_atoms)[0, 1] == pytest.approx(1.0, abs=1e-3)

    def test_batches_of_edges(self):
        memory = MemoryDataset(self.STRUCTURES)
        counts = np.array([neighbor_list(s, 4.0)[0].shape[1] for s in self.STRUCTURES])
        budget = int(3 * counts.max())
        loader = batches(memory, 4.0, budget, costs=counts, shuffle_seed=0)
        n_edges = [batch.n_edges for batch in loader]
        assert max(n_edges) <= budget
        assert sum(n_edges) == counts.sum()


class TestBatchesMadeAhead:
    """A thread makes the next batch while one is in use."""

    @staticmethod
    def loader(structures, reads_ahead: bool, start: int = 0) -> ResumableLoader:
        sampler = BatchSampler(len(structures), 3, shuffle=True, seed=5, rank=(0, 1))
        sampler.start = start
        return ResumableLoader(BatchReader(structures, 4.0), sampler, reads_ahead=reads_ahead)

    @pytest.mark.parametrize("start", [0, 2])
    def test_they_are_the_same_in_the_same_order(self, start):
        structures = [named(i) for i in range(11)]
        plain, ahead = (self.loader(structures, reads_ahead, start) for reads_ahead in (False, True))
        for ours, theirs in zip(ahead, plain, strict=True):
            assert ours.ids == theirs.ids
            assert torch.equal(ours.positions, theirs.positions)
            assert ahead.state_dict() == plain.state_dict(), "a batch counts when it is handed out, not when it is made"

    def test_a_batch_is_made_while_another_is_in_use(self):
        made, later = threading.Event(), set()

        class Reading(list):
            def __getitem__(self, i):
                if i in later:
                    made.set()
                return super().__getitem__(i)

        structures = Reading(named(i) for i in range(6))
        loader = self.loader(structures, reads_ahead=True)
        later.update(list(loader.sampler)[1])
        batches = iter(loader)
        next(batches)
        assert made.wait(60)
        batches.close()

    def test_what_goes_wrong_is_said_where_the_batch_is_asked_for(self):
        structures = [named(i) for i in range(6)]
        place = list(self.loader(structures, False).sampler)[1][0]
        structures[place] = damaged(structures[place], positions=np.zeros((len(structures[place]), 3)))
        batches = iter(self.loader(structures, reads_ahead=True))
        next(batches)
        with pytest.raises(InputError, match="same place"):
            next(batches)
