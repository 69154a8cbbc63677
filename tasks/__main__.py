"""The programs; each has --help:

  python -m tasks.train        trains one method on one task
  python -m tasks.compare      compares methods, each with several seeds
  python -m tasks.tune         chooses settings on validation examples
  python -m tasks.evaluate     evaluates a run device by device
  python -m tasks.personalize  writes a device's personalized model
  python -m tasks.benchmark    measures rounds against a bare loop and TFF

The tasks, for --task=NAME, with their default settings:

                     devices examples  classes     weights  file in
                             a device  a device             --data_dir
  digits                 100       12  5 of 10       2,778
  fashion_mnist_small    100      600  5 of 10      34,122  fashion_mnist.npz *
  fashion_mnist          100      600  5 of 10     573,578  fashion_mnist.npz *
  cifar10                100      500  5 of 10     797,962  cifar10.npz *
  cifar100               100      500  20 of 100   815,332  cifar100.npz *
  mini_imagenet          100      500  20 of 100 1,514,792  mini_imagenet.npz
  emnist_digits        3,383      101  10          573,578  emnist_all.sqlite *
  emnist               3,400      198  62          583,614  emnist_all.sqlite *
  shakespeare            715           128         830,592  shakespeare.sqlite *
  npz                                                       DEVICE.npz of each

* Without --data_dir, the data are downloaded. Digits come with scikit-learn.
A round takes 0.4 seconds for digits and 12 for cifar10, on two cores.
Begin with: python -m tasks.train
"""

if __name__ == '__main__':
  print(__doc__.strip())
