"""How each data set has to lie on disk, told where something of it is missing."""

from keras_stss.data.annotations.data_set import DataError

_SOMETHING_PAGE = (
    "the Something-Something page of Qualcomm's developer site, "
    "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
)


def _gym(number):
    return f"""\
FineGym's lists and times come from https://sdolivia.github.io/FineGym/, the videos from YouTube.
Wanted below data.root (the lists may also lie in labels/ or annotations/, and under other names that
data.train, data.validation, data.labels and data.annotations give):
  gym{number}_train_element_v1.1.txt, gym{number}_val_element.txt (or gym{number}_train.txt, gym{number}_val.txt)
  finegym_annotation_info_v1.1.json    the times of events and actions
  gym{number}_categories.txt: the names of the classes, if you like
  A0xAXXysHUo.mp4, ...                 whole videos, anywhere below (data.videos names a folder); videos that are cut
                                       already, named A0xAXXysHUo_E_002184_002237[_A_0035_0036].mp4, are taken first"""


_LAYOUTS = {
    "something_v2": f"""\
Something-Something V2 comes from {_SOMETHING_PAGE}.
Wanted below data.root (the three lists may also lie in labels/ or annotations/):
  something-something-v2-train.json
  something-something-v2-validation.json
  something-something-v2-labels.json
  20bn-something-something-v2/1.webm, 2.webm, ...""",
    "something_v1": f"""\
Its makers no longer offer Something-Something V1 since V2 came ({_SOMETHING_PAGE});
people have it from the 20BN release. Wanted below data.root:
  something-something-v1-train.csv
  something-something-v1-validation.csv
  something-something-v1-labels.csv
  20bn-something-something-v1/1/00001.jpg, 00002.jpg, ...""",
    "kinetics": """\
Kinetics-400 is had from https://github.com/cvdfoundation/kinetics-dataset.
Wanted below data.root (the lists may also lie in labels/ or annotations/):
  train.csv, val.csv                   label,youtube_id,time_start,time_end,split
  train/abseiling/id_000010_000020.mp4, ...   anywhere below, in folders of classes or not
                                              (data.videos names a folder)""",
    "diving48": """\
Diving-48 comes from http://www.svcl.ucsd.edu/projects/resound/dataset.html.
Wanted below data.root (the lists may also lie in labels/ or annotations/):
  Diving48_V2_train.json, Diving48_V2_test.json, Diving48_vocab.json
  rgb/<vid_name>.mp4, ...              (or videos/, or the folder that data.videos names)""",
    "gym99": _gym(99),
    "gym288": _gym(288),
    "ucf101": """\
UCF-101 comes from https://www.crcv.ucf.edu/data/UCF101.php.
Wanted below data.root:
  ucfTrainTestlist/classInd.txt, trainlist01.txt, testlist01.txt (02, 03: data.fold)
  UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi, ...   (or videos/, or the folder that data.videos names)""",
    "hmdb51": """\
HMDB-51 comes from https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/.
Wanted below data.root:
  testTrainMulti_7030_splits/brush_hair_test_split1.txt, ... (split2, split3: data.fold; or the folder that
                                                              data.annotations names)
  hmdb51_org/brush_hair/*.avi, ...     (or videos/, or the folder that data.videos names)""",
    "frame_list": """\
Wanted below data.root (the names of the TSM code; data.train, data.validation and data.labels give others):
  train_videofolder.txt, val_videofolder.txt   a line: path num_frames label
  category.txt                         names of the classes, one a line, if you like
  the folders of frames, at the paths that the lists give (from the folder that data.videos names):
  img_00001.jpg, ... or 00001.jpg, ...""",
    "records": """\
A folder that `keras-stss prepare pack` wrote, which may be remote (gs://bucket/folder). Wanted below data.root:
  manifest.json                        written when all shards are there: where it is missing, pack again to finish
  train-00000-of-00016.tfrecord, .json, .index, ... and the same for validation""",
    "clips": """\
Wanted below data.root:
  clips.csv (the file that data.annotations names; header path,label and, if you like, split, start and end in
  seconds, and a group)
  the clips, at the paths that it gives (videos, or folders of JPEG frames); a path may be absolute or remote""",
}


def not_there(data, what, looked):
    """The error of a file or folder that is missing: what, where it was looked for, and what is wanted."""
    places = "\n".join(f"  {place}" for place in dict.fromkeys(map(str, looked)))
    return DataError(f"data set not found: {what} is missing. Looked for:\n{places}\n{_LAYOUTS[data.format]}")
