import json
import pickle

import pytest
import torch

from autocompress.errors import ArtifactError
from autocompress.models.plain import function, graph_of, plain
from tests.models import group_nets as nets

NETS = {
    "resnet": lambda: nets.traced(nets.resnet("conv")),
    "shuffle": lambda: nets.traced(nets.Shuffle()),
    "convnext": lambda: nets.traced(nets.ConvNext()),
    "speech": lambda: nets.traced(nets.Speech(), 3, 40),
}


@pytest.mark.parametrize("name", NETS)
def test_a_network_is_the_same_in_another_process(name):
    network = NETS[name]()
    copy = pickle.loads(pickle.dumps(network))
    assert copy.fingerprint == network.fingerprint
    assert [unit.name for unit in copy.units] == [unit.name for unit in network.units]
    assert torch.equal(copy(*network.example_inputs), network(*network.example_inputs))
    kept = nets.choose(network, 0)
    sliced, other = network.pruned(kept)[0], copy.pruned(kept)[0]
    assert torch.equal(sliced(*network.example_inputs), other(*network.example_inputs))


def test_plain_data_goes_through_json():
    network = NETS["shuffle"]()
    data = [plain(node) for node in network.graph.nodes]
    copy = graph_of(json.loads(json.dumps(data)))
    assert [plain(node) for node in copy.nodes] == data


def test_other_functions_are_refused():
    with pytest.raises(ArtifactError, match=r"not 'os\.system'"):
        function("os.system")
