"""The atlas: published studies of introspection as data, to run on any model."""

from .entry import ENTRIES as ENTRIES
from .entry import Entry as Entry
from .entry import Part as Part
from .entry import Published as Published
from .entry import entry as entry
from .measures import Estimate as Estimate
from .measures import Figure as Figure
from .measures import Measure as Measure
from .replicate import replicate as replicate
from .replication import Replication as Replication
