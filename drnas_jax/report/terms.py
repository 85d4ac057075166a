"""The words that a reader of the report may not know."""

from drnas_jax.report.markup import details, facts

_TERMS = (
    (
        "operation, edge, cell",
        "A network repeats a small graph, the cell. Each of its edges carries "
        "one operation, such as a convolution.",
    ),
    (
        "genotype",
        "A cell that was found: the operation of each edge. In its text, op~0 is the "
        "operation op whose input is node 0.",
    ),
    ("1<-0", "The edge from node 0 to node 1. The inputs of the cell have the first numbers."),
    (
        "supernet",
        "The network that the search trains. It computes all operations of each edge and "
        "adds them up with mixing weights.",
    ),
    (
        "alpha, mixing weights",
        "Alpha are the parameters that the search learns beside the supernet's weights. The mixing "
        "weights of an edge follow from them.",
    ),
    (
        "frozen alpha",
        "At the beginning of a stage only the supernet's weights may be trained. Scores and "
        "mixing weights do not change in these epochs.",
    ),
    (
        "stage, K",
        "At the end of a stage the operations of smallest score are pruned, and K falls: 1/K of "
        "the channels pass through the operations.",
    ),
    (
        "score",
        "What pruning compares. With a Dirichlet distribution it is the concentration, "
        "elu(alpha) + 1.",
    ),
    (
        "entropy",
        "How evenly the mixing weights are spread over the operations of an edge: large "
        "before alpha is trained, 0 if one operation has all the weight.",
    ),
    (
        "validation accuracy of the supernet",
        "Measured on images that do not train its weights, with the mean mixing weights. It says "
        "little about the network that is found.",
    ),
    (
        "accuracy in the supernet",
        "That of one cell with the weights that it shares with all others.",
    ),
    (
        "test accuracy",
        "That of the network of the found cell, retrained from scratch, on images "
        "that neither phase has used.",
    ),
    (
        "true accuracy",
        "From a table of networks that were trained to the end, such as NAS-Bench-201.",
    ),
    (
        "random cells",
        "Cells drawn uniformly from the operations that are left at the end of the "
        "search. The result itself and cells drawn twice are left out.",
    ),
    ("expected cost", "The cost of the network that the mixing weights stand for, on average."),
    ("cost.target", "What the result may cost at most."),
)


def terms() -> str:
    """Returns a list of terms with their meanings, hidden until the reader opens it."""
    return details("What do the words mean?", facts(_TERMS))
