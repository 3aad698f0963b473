"""Studies: an experiment with its control arms, what it shows, and what it takes to show it."""

from .answers import answer_shares as answer_shares
from .answers import grade as grade
from .answers import spellings as spellings
from .arms import ARMS as ARMS
from .arms import DEFAULT_ARMS as DEFAULT_ARMS
from .judges import Judge as Judge
from .judges import Judgement as Judgement
from .judges import agreement as agreement
from .judges import corrected_rates as corrected_rates
from .judges import endpoint_judge as endpoint_judge
from .judges import model_judge as model_judge
from .organisms import KINDS as ORGANISMS
from .organisms import Organism as Organism
from .organisms import behaviours as behaviours
from .organisms import grow as grow
from .organisms import load_organism as load_organism
from .setup import Arm as Arm
from .setup import Setup as Setup
from .study import Study as Study
from .study import StudyPlan as StudyPlan
from .study import run_study as run_study
from .together import Experiment as Experiment
from .together import run_together as run_together
from .trials import Trials as Trials
from .trials import sample_trials as sample_trials
