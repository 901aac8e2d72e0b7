# SPDX-License-Identifier: Apache-2.0
"""`spatext-lab data fetch`: a subset of COCO 2017 from its publisher, or from a mirror."""

from spatext_lab.datasets.coco.fetch.answers import TransferError
from spatext_lab.datasets.coco.fetch.report import FetchReport
from spatext_lab.datasets.coco.fetch.run import fetch_coco
from spatext_lab.datasets.coco.fetch.waiting import Patience
